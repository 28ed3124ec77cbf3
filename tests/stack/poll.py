"""Wait for a condition instead of a fixed time."""

import time
from collections.abc import Callable
from typing import TypeVar

from python_on_whales.exceptions import DockerException

T = TypeVar("T")


def poll_until(condition: Callable[[], T], what: str, timeout: float, interval: float = 0.25) -> T:
    """Return the first truthy value of `condition`; AssertionError naming `what` after `timeout` seconds.

    Many tests stop the service that `condition` reads from, so OSError, LookupError and errors of docker count as
    "not yet"; the last error is part of the message.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            last: object = condition()
        except (OSError, LookupError, DockerException) as error:
            last = error
        else:
            if last:
                return last  # type: ignore[return-value]
        if time.monotonic() > deadline:
            raise AssertionError(f"timed out after {timeout:g} s waiting for: {what}; last seen: {last!r}")
        time.sleep(interval)
