"""rq. Its SimpleWorker runs jobs in its own process; the default worker forks for each job, and is much slower."""

import time

from redis import Redis
from rq import Queue

from bench import tally

queue = Queue("bench", connection=Redis.from_url(f"{tally.URL}/0"))


def noop(number: int) -> None:
    """Nothing but being counted."""
    tally.add(number)


def timed(sent: float) -> None:
    """How long its message took."""
    tally.add(0, sent)


def send(number: int) -> None:
    """Publish a no-op."""
    queue.enqueue(noop, number, result_ttl=0)


def send_timed() -> None:
    """Publish a task that measures its latency."""
    queue.enqueue(timed, time.monotonic(), result_ttl=0)
