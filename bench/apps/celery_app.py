"""A Celery app. BENCH_APP, JSON, has its options: see `contenders.CeleryApp`."""

import json
import os
import sys
import time
from contextlib import AbstractContextManager, nullcontext

from celery import Celery
from redis.client import Pipeline

from bench import tally

URL = f"{tally.URL}/0"
EFFECT = "effect"

options = json.loads(os.environ["BENCH_APP"])
if not options["metrics"]:
    sys.modules["prometheus_client"] = None  # type: ignore[assignment] # as without the library's extra `metrics`

app = Celery("bench", broker=URL)
app.conf.update(options["settings"])
if options["library"] is not None:
    from celery_durable import Config, install

    durable = install(app, Config(**{"store": URL, **options["library"]}))


@app.task(**options["task"])
def noop(number: int) -> None:
    """Nothing but being counted, and the effect that the contender asks for."""
    match options["effect"]:
        case "plain":
            durable.store.incr(EFFECT)
        case "once":

            def effect(pipe: Pipeline) -> None:
                pipe.incr(EFFECT)

            durable.once(f"once:{number}", effect, ttl=600)
    tally.add(number)


@app.task
def timed(sent: float) -> None:
    """How long its message took."""
    tally.add(0, sent)


@app.task
def pause(seconds: float) -> None:
    """Takes so long, without CPU."""
    time.sleep(seconds)


def batch() -> AbstractContextManager[None]:
    """Within it `send` publishes."""
    return durable.batch() if options["batch"] else nullcontext()


def send(number: int) -> None:
    """Publish a no-op."""
    noop.delay(number)


def send_timed() -> None:
    """Publish a task that measures its latency."""
    timed.apply_async((time.monotonic(),), **options["urgent"])


def send_due(countdown: float) -> None:
    """Publish a delayed task that measures how late it is."""
    timed.apply_async((time.monotonic() + countdown,), countdown=countdown)


def send_later() -> None:
    """Publish a no-op that is not due before the measurement ends."""
    noop.apply_async((0,), countdown=86_400)


def send_pause(seconds: float) -> None:
    """Publish a task that takes time."""
    pause.apply_async((seconds,), **options["patient"])
