"""Threads that call a function periodically."""

import threading
from collections.abc import Callable

from celery_durable.logs import get_logger

logger = get_logger(__name__)


class Background:
    """Calls a function at once and then every `interval` seconds, from a daemon thread, until it is stopped.

    The function may return the seconds until its next call. An exception of it is logged, and does not end the thread.
    """

    def __init__(self, name: str, interval: float, function: Callable[[], float | None]) -> None:
        self._name, self._interval, self._function = name, interval, function
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            seconds = None
            try:
                seconds = self._function()
            except Exception:
                logger.exception("%s failed; it is tried again in %g s", self._name, self._interval)
            if self._stopped.wait(self._interval if seconds is None else seconds):
                return

    def stop(self, timeout: float = 0) -> None:
        """Make no more calls; wait up to `timeout` seconds for a running one."""
        self._stopped.set()
        if timeout:
            self._thread.join(timeout)
