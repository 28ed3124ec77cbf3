"""The first Ctrl-C ends a run, which then undoes what it did; another one must not interrupt that."""

import os
import signal


def shield() -> None:
    """From now on Ctrl-C reaches neither this process nor the commands that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
