"""dramatiq with its Redis broker and its default middleware. It acknowledges when a task is done."""

import time

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from bench import tally

dramatiq.set_broker(RedisBroker(url=f"{tally.URL}/0"))


@dramatiq.actor
def noop(number: int) -> None:
    """Nothing but being counted."""
    tally.add(number)


@dramatiq.actor
def timed(sent: float) -> None:
    """How long its message took."""
    tally.add(0, sent)


def send(number: int) -> None:
    """Publish a no-op."""
    noop.send(number)


def send_timed() -> None:
    """Publish a task that measures its latency."""
    timed.send(time.monotonic())
