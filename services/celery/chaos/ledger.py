"""Units of work that are counted one by one: what fault tests submit, `make chaos` too.

ledger:runs         list of "unit time": each run that was begun
ledger:effects      list of "unit time": each effect that was applied
ledger:done:<unit>  done marker
"""

import time
from typing import Annotated

from celery.exceptions import SoftTimeLimitExceeded
from pydantic import Field
from redis.client import Pipeline

from celery_app import Task, app, durable
from tasks.arguments import Name, Seconds, checked

RUNS, EFFECTS = "ledger:runs", "ledger:effects"
KEPT_FOR = 3600  # s, a done marker

Megabytes = Annotated[int, Field(ge=0, le=2000)]


@app.task(outbox=True, bind=True)
@checked
def apply(self: Task, unit: Name, seconds: Seconds = 0, megabytes: Megabytes = 0) -> None:
    """Take a while, and a lot of memory at the first run; then apply the effect of a unit, once."""
    client = durable.store
    client.rpush(RUNS, f"{unit} {time.time()}")
    if megabytes and not self.request.retries:
        _ballast = b"x" * (megabytes << 20)
    time.sleep(seconds)

    def effect(pipe: Pipeline) -> None:
        pipe.rpush(EFFECTS, f"{unit} {time.time()}")

    durable.once(f"ledger:done:{unit}", effect, ttl=KEPT_FOR)


@app.task(outbox=True, bind=True, max_retries=0)
@checked
def overrun(self: Task, unit: Name, seconds: Seconds) -> None:
    """Take longer than the limits of the call, and do not listen: its effect never comes."""
    client = durable.store
    client.rpush(RUNS, f"{unit} {time.time()}")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            time.sleep(end - time.monotonic())
        except SoftTimeLimitExceeded:
            continue
    client.rpush(EFFECTS, f"{unit} {time.time()}")


@app.task(outbox=True)
@checked
def join(_results: list[None], unit: Name) -> None:
    """The callback of a chord of units: a unit itself."""
    apply.run(unit)
