"""Wait for a condition instead of a fixed time."""

import time
from collections.abc import Callable
from typing import TypeVar

from redis import RedisError

T = TypeVar("T")


def poll_until(condition: Callable[[], T], what: str, timeout: float = 60, interval: float = 0.1) -> T:
    """Return the first truthy value of `condition`; AssertionError naming `what` after `timeout` seconds.

    OSError, LookupError and errors of Redis count as "not yet", since a service may be down for a moment; the last
    error is part of the message.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            last: object = condition()
        except (OSError, LookupError, RedisError) as error:
            last = error
        else:
            if last:
                return last  # type: ignore[return-value]
        if time.monotonic() > deadline:
            raise AssertionError(f"timed out after {timeout:g} s waiting for: {what}; last seen: {last!r}")
        time.sleep(interval)
