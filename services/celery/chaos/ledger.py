"""Tasks whose runs and effects are recorded individually; `make chaos` and the fault tests publish them.

ledger:runs         list of "name time": each run that was started
ledger:effects      list of "name time": each effect that was applied
ledger:done:<name>  done marker
ledger:numbered     list of "number attempt began ended worker redelivered last due": each run of `numbered`
ledger:submitted    hash: what each publisher of `make soak KILLS=…` has submitted
"""

import time
from typing import Annotated

from celery.exceptions import SoftTimeLimitExceeded
from pydantic import Field
from redis.client import Pipeline

from celery_app import Task, app, durable
from tasks.arguments import Name, Seconds, checked

RUNS, EFFECTS = "ledger:runs", "ledger:effects"
NUMBERED, SUBMITTED = "ledger:numbered", "ledger:submitted"
KEPT_FOR = 3600  # s that a done marker is kept
RETRIED_AFTER = 2  # s

Megabytes = Annotated[int, Field(ge=0, le=2000)]


@app.task(outbox=True, bind=True)
@checked
def apply(self: Task, name: Name, seconds: Seconds = 0, megabytes: Megabytes = 0) -> None:
    """Take some time, and memory at the first run; then apply the effect, once."""
    client = durable.store
    client.rpush(RUNS, f"{name} {time.time()}")
    if megabytes and not self.request.retries:
        _ballast = b"x" * (megabytes << 20)
    time.sleep(seconds)

    def effect(pipe: Pipeline) -> None:
        pipe.rpush(EFFECTS, f"{name} {time.time()}")

    durable.once(f"ledger:done:{name}", effect, ttl=KEPT_FOR)


@app.task(outbox=True, bind=True, max_retries=0)
@checked
def overrun(self: Task, name: Name, seconds: Seconds) -> None:
    """Run longer than the time limits of the call and ignore the soft one: its effect is never applied."""
    client = durable.store
    client.rpush(RUNS, f"{name} {time.time()}")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            time.sleep(end - time.monotonic())
        except SoftTimeLimitExceeded:
            continue
    client.rpush(EFFECTS, f"{name} {time.time()}")


@app.task(outbox=True, rate_limit="3/m")
@checked
def limited(name: Name) -> None:
    """Wait in the worker for the rate limit; then apply the effect, once."""
    apply.run(name)


@app.task(outbox=True)
@checked
def join(_results: list[None], name: Name) -> None:
    """The callback of a chord; it also has an effect."""
    apply.run(name)


@app.task(bind=True, max_retries=None, store_errors_even_if_ignored=False)
def numbered(self: Task, number: int, seconds: float, retries: int, due: float = 0) -> None:
    """Take some time, record the run, and retry this often. Without outbox and done marker, so that each loss and each
    second delivery shows. The record is the first step that is seen: a run whose retry is published has one."""
    request, began = self.request, time.time()
    time.sleep(seconds)
    last, redelivered = request.retries >= retries, bool((request.delivery_info or {}).get("redelivered"))
    words = (number, request.retries, f"{began:.3f}", f"{time.time():.3f}", request.hostname, redelivered, last, due)
    durable.store.rpush(NUMBERED, " ".join(map(str, words)))
    if not last:
        due = time.time() + RETRIED_AFTER
        raise self.retry(args=(number, seconds, retries, due), countdown=RETRIED_AFTER)
