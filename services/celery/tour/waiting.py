"""Waiting for what has yet to come, and what is raised when it does not."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 30  # s that a step waits for anything; the stack may be busy


class TookTooLongError(Exception):
    """What a step waited for did not come; the message names it."""


class UnavailableError(Exception):
    """A service that a step needs is not there; the message says what to do."""


def until(condition: Callable[[], T], what: str, timeout: float = PATIENCE, interval: float = 0.02) -> T:
    """The first truthy value of `condition`. Raises TookTooLongError naming `what` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TookTooLongError(f"waited {timeout:g} s for {what}")
        time.sleep(interval)
    return value


def describe(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {error}"
