"""Workers and beats that a lesson starts on a private queue: it may stop, kill and overload them."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tour.evidence import Seen
from tour.waiting import TookTooLongError, until

# Fields of celery_durable.Config for redelivery after 5 s with either transport, and the values that must be shorter.
SOON = {
    "lease": 5,
    "lease_renewal": 1,
    "visibility_timeout": 5,
    "renew_interval": 1,
    "max_delay": 4.5,
    "default_retry_delay": 1,
    "unknown_task_delay": 1,
}
STARTS_WITHIN = 60  # s; about 0.6 on an idle machine
STOPS_WITHIN = 8


class Process:
    """A `celery` command of a lesson; `more`: fields of TOUR_PROCESS (tour/app.py); `delivery`: fields of
    celery_durable.Config that differ from the stack's."""

    ready = ""  # text in its log once it is ready

    def __init__(
        self,
        command: Sequence[str],
        queue: str,
        log: Path,
        environment: Mapping[str, str] | None = None,
        delivery: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> None:
        self.queue = queue
        self._log = log
        variables = {
            "REMAP_SIGTERM": "",  # SIGTERM is a warm shutdown, not the stack's soft one, which takes 6 s
            **(environment or {}),
            "TOUR_PROCESS": json.dumps({"queue": queue, **more}),
            "DELIVERY": json.dumps({"metrics_port": None, "heartbeat_file": None, **(delivery or {})}),
        }
        with log.open("w") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "tour.app", *command],
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches only the tour, which then stops its processes in order
            )

    def __str__(self) -> str:
        return f"{type(self).__name__.lower()} of {self.queue}"

    def wait_ready(self) -> None:
        """Wait until it is ready. Raises TookTooLongError with its last log lines if it has ended instead."""

        def ready() -> bool:
            if self._process.poll() is not None:
                last = "\n".join(self._log.read_text(errors="replace").splitlines()[-8:])
                raise TookTooLongError(f"{self} ended at once:\n{last}")
            return self.ready in self._log.read_text(errors="replace")

        until(ready, f"{self} to be ready", STARTS_WITHIN)

    def log(self, pattern: str) -> Seen[list[str]]:
        """The log lines that match, once there is one."""

        def matching() -> list[str]:
            return [line for line in self._log.read_text(errors="replace").splitlines() if re.search(pattern, line)]

        return Seen(until(matching, f"a log line of {self} that matches {pattern!r}"), "its log")

    def signal(self, number: int) -> None:
        """Send a signal to its main process."""
        self._process.send_signal(number)

    def exit_code(self) -> Seen[int]:
        """Its exit code, once it has ended."""
        until(lambda: self._process.poll() is not None, f"{self} to end")
        return Seen(self._process.wait(), "the operating system")

    def stop(self) -> None:
        """Ask it to end, without waiting."""
        if self._process.poll() is None:
            self._process.terminate()

    def kill(self) -> None:
        """Kill it and its children at once, as in a power failure."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def reap(self) -> None:
        """Wait for a stopped process; kill it if it does not end."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOPS_WITHIN)
        self.kill()


class Worker(Process):
    """A worker on a private queue."""

    ready = " ready."

    def __init__(self, name: str, queue: str, log: Path, options: Sequence[str], **more: Any) -> None:
        self.name = f"{name}@{os.uname().nodename}"
        command = ["worker", "-Q", queue, "-n", self.name, "--without-mingle", "--without-gossip", "--loglevel=INFO"]
        super().__init__([*command, "--task-events", *options], queue, log, **more)


class Beat(Process):
    """A beat that sends to a private queue."""

    ready = "beat: Starting"

    def __init__(self, queue: str, log: Path, state: Path, **more: Any) -> None:
        self.name = f"celerybeat@{os.uname().nodename}"
        command = ["beat", "--loglevel=INFO", "--pidfile=", f"--schedule={state}"]
        # Without the reconciler: a lesson's beat sends only the lesson's entries.
        super().__init__(command, queue, log, delivery={"outbox": False}, **more)
