"""Waiting for a condition, and the errors of steps."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 60  # s that a step waits for a condition: the machine may be busy with something else


class TookTooLongError(Exception):
    """A step timed out; the message says what it waited for."""


class UnavailableError(Exception):
    """A service that a step needs is not available; the message says what to do."""


def until(condition: Callable[[], T], what: str, timeout: float = PATIENCE, interval: float = 0.02) -> T:
    """The first truthy value of `condition`. Raises TookTooLongError naming `what` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TookTooLongError(f"timed out after {timeout:g} s waiting for {what}")
        time.sleep(interval)
    return value


def describe(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {error}"
