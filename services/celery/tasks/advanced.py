"""Failures, retries, time limits and acknowledgement."""

import os
import signal
import time
from typing import Annotated, Any

from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from pydantic import Field

from celery_app import Task, app
from celery_durable import PeriodicTask
from tasks.arguments import Name, Number, Seconds, checked
from tasks.notes import note


def die() -> None:
    """Kill this child process, as the out-of-memory killer does."""
    os.kill(os.getpid(), signal.SIGKILL)


# --- A custom state ---


@app.task(bind=True, ignore_result=False)
@checked
def progress(self: Task, steps: Annotated[int, Field(ge=1, le=100)] = 10, seconds: Seconds = 5) -> dict[str, Any]:
    """Run in steps, `seconds` in total; meanwhile the state is PROGRESS with {"done", "steps"}."""
    for done in range(steps):
        self.update_state(state="PROGRESS", meta={"done": done, "steps": steps})
        time.sleep(seconds / steps)
    return {"done": steps, "steps": steps}


# --- Errors and retries ---


class AwayError(Exception):
    """An external service does not answer."""


class GoneError(AwayError):
    """The service was removed: a retry cannot succeed."""


@app.task(
    ignore_result=False,
    autoretry_for=(AwayError,),
    dont_autoretry_for=(GoneError,),
    max_retries=3,
    retry_backoff=1,  # s: 1, 2, 4 …
    retry_backoff_max=2,
    retry_jitter=False,
)
@checked
def ask(name: Name, failures: Annotated[int, Field(ge=0, le=5)] = 0, gone: bool = False) -> str:
    """Call a service that fails the first `failures` times, or was removed."""
    if gone:
        raise GoneError(f"{name} has moved")
    if note(name, "asked") <= failures:
        raise AwayError(f"{name} does not answer")
    return "an answer"


@app.task(ignore_result=False, autoretry_for=(AwayError,), max_retries=1, retry_backoff=4, retry_jitter=True)
@checked
def ask_with_jitter(name: Name) -> str:
    """Fails at the first try; the second is at a random time in the next 4 s."""
    if note(name, "asked") == 1:
        raise AwayError(f"{name} does not answer")
    return "an answer"


@app.task(bind=True, ignore_result=False, max_retries=1)
@checked
def ask_by_hand(self: Task, name: Name) -> str:
    """Calls retry itself: here once, after a second."""
    try:
        note(name, "asked")
        raise AwayError(f"{name} does not answer")
    except AwayError as error:
        raise self.retry(exc=error, countdown=1) from error


@app.task(bind=True, ignore_result=False)
@checked
def skip(self: Task) -> None:
    """Keep the state that this task has set: after Ignore the worker stores nothing."""
    self.update_state(state="SKIPPED", meta={"why": "nothing to do today"})
    raise Ignore


@app.task(ignore_result=False)
@checked
def refuse() -> None:
    """Reject the message: it is not retried."""
    raise Reject("not for me", requeue=False)


class HookedTask(Task):
    """A base class with hooks: Celery calls them before and after each run, in the process that runs the task."""

    abstract = True

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        note(args[0], "before_start")

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        note(args[0], f"on_success {retval}")

    def on_failure(self, exc: Exception, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        note(args[0], f"on_failure {type(exc).__name__}")

    def after_return(self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        note(args[0], f"after_return {status}")


@app.task(base=HookedTask, ignore_result=False)
@checked
def divide(name: Name, x: Number, y: Number) -> float:
    """x / y; the hooks write notes."""
    return x / y


# --- Acknowledgement: a task whose process is killed ---


@app.task(ignore_result=False, acks_late=False, retry_on_worker_lost=False)
@checked
def die_acked_early(name: Name) -> str:
    """Killed at its first run; its message is acknowledged already."""
    if note(name, "run") == 1:
        die()
    return "done"


@app.task(ignore_result=False, acks_late=True, retry_on_worker_lost=True, default_retry_delay=1)
@checked
def die_acked_late(name: Name) -> str:
    """Killed at its first run; its message is not acknowledged yet."""
    if note(name, "run") == 1:
        die()
    return "done"


@app.task(ignore_result=False, acks_late=True, retry_on_worker_lost=True, max_retries=1, default_retry_delay=1)
@checked
def poison(name: Name) -> None:
    """Kills its process each time."""
    note(name, "run")
    die()


@app.task(ignore_result=False)
@checked
def take_long(name: Name, seconds: Seconds) -> str:
    """Note each start, then sleep."""
    runs = note(name, "run")
    time.sleep(seconds)
    return f"run {runs}"


# --- Limits ---


@app.task(ignore_result=False, soft_time_limit=1, time_limit=3)
@checked
def stop_in_time(name: Name, seconds: Seconds) -> str:
    """Exceeds its soft time limit, catches the exception, and cleans up."""
    try:
        time.sleep(seconds)
    except SoftTimeLimitExceeded:
        note(name, "cleaned up")
        return "stopped in time"
    return "done"


@app.task(ignore_result=False, soft_time_limit=1, time_limit=2)
@checked
def stop_never(name: Name, seconds: Seconds) -> str:
    """Exceeds its time limits, ignores the soft one, and is killed."""
    for _ in range(2):
        try:
            time.sleep(seconds)
        except SoftTimeLimitExceeded:
            note(name, "ignored")
    return "done"


@app.task(ignore_result=False, rate_limit="2/s")
@checked
def slow_lane() -> None:
    """At most two per second and worker."""


# --- Beat ---


@app.task(base=PeriodicTask, bind=True, ignore_result=False)
@checked
def tick(self: PeriodicTask, name: Name) -> None:
    """Sent by a lesson's beat: notes its due time."""
    note(name, str((self.request.headers or {}).get("beat_due")))
