"""taskiq with its Redis stream broker, which acknowledges when a task is done."""

import asyncio
import time

from taskiq_redis import RedisStreamBroker

from bench import tally

broker = RedisStreamBroker(f"{tally.URL}/0", xread_count=100)
loop = asyncio.new_event_loop()  # of a publisher
started = False


@broker.task
async def noop(number: int) -> None:
    """Nothing but being counted."""
    tally.add(number)


@broker.task
async def timed(sent: float) -> None:
    """How long its message took."""
    tally.add(0, sent)


def _publisher() -> asyncio.AbstractEventLoop:
    global started
    if not started:
        loop.run_until_complete(broker.startup())
        started = True
    return loop


def send(number: int) -> None:
    """Publish a no-op."""
    _publisher().run_until_complete(noop.kiq(number))


def send_timed() -> None:
    """Publish a task that measures its latency."""
    _publisher().run_until_complete(timed.kiq(time.monotonic()))
