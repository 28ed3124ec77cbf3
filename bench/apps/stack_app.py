"""Tasks in the stack's own app, for its workers of the queue `low`; they count in the benchmarks' Redis."""

import time

from bench import tally
from celery_app import app


@app.task
def noop(number: int) -> None:
    """Nothing but being counted."""
    tally.add(number)


@app.task
def pause(number: int, seconds: float) -> None:
    """Takes so long, without CPU."""
    time.sleep(seconds)
    tally.add(number)


def send(number: int) -> None:
    """Publish a no-op."""
    noop.delay(number)
