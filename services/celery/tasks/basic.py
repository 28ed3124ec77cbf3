"""The smallest tasks: a result, a failure, a retry, a pause, a load."""

import time

from celery.utils.log import get_task_logger

import timing
from celery_app import Task, app

logger = get_task_logger(__name__)

MAX_SECONDS = timing.SOFT_TIME_LIMIT - 5
MAX_FAILURES = 5


class FlakyError(Exception):
    """A failure that goes away when tried again."""


def check_number(name: str, value: object, low: float, high: float) -> None:
    """Raise ValueError unless low <= value <= high: a wrong argument fails at once, and retrying would not mend it."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{name}: a number from {low:g} to {high:g}, got {value!r}")


@app.task(ignore_result=False)
def add(x: float, y: float) -> float:
    """The sum of two numbers."""
    for name, value in (("x", x), ("y", y)):
        check_number(name, value, -1e15, 1e15)
    return x + y


@app.task(
    bind=True,
    ignore_result=False,
    autoretry_for=(FlakyError,),
    max_retries=MAX_FAILURES,
    retry_backoff=1,  # s: 1, 2, 4 …
    retry_backoff_max=timing.MAX_DELAY,
    retry_jitter=True,  # a random part of it, so that tasks that failed together do not come back together
)
def flaky(self: Task, failures: int = 1) -> int:
    """Fail so many times, then succeed. Returns how often it was tried."""
    check_number("failures", failures, 0, MAX_FAILURES)
    if self.request.retries < failures:
        raise FlakyError(f"failure {self.request.retries + 1} of {failures}")
    return int(self.request.retries) + 1


@app.task(ignore_result=False)
def failing(reason: str = "on purpose") -> None:
    """Always fail."""
    raise RuntimeError(f"this task always fails: {reason}")


@app.task(ignore_result=False)
def sleep(seconds: float) -> float:
    """Wait, as a task does that waits for someone else's answer."""
    check_number("seconds", seconds, 0, MAX_SECONDS)
    time.sleep(seconds)
    return seconds


@app.task(ignore_result=False)
def spin(milliseconds: float) -> int:
    """Use a CPU for so long. Returns the number of rounds."""
    check_number("milliseconds", milliseconds, 0, MAX_SECONDS * 1000)
    end, rounds = time.process_time() + milliseconds / 1000, 0
    while time.process_time() < end:
        rounds += 1
    return rounds
