"""Python imports this module when it starts: Ctrl-C ends each program of the image without a traceback, also while it
imports its modules. The exit code stays 130."""

import sys
from types import TracebackType

default = sys.excepthook


def without_interrupts(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print errors as before, but not an interrupt."""
    if not issubclass(kind, KeyboardInterrupt):
        default(kind, error, trace)


sys.excepthook = without_interrupts
