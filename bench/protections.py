"""What each protection of delivery costs: the same small task with and without it, compared in one run.

`make bench` runs it in a client container with two separate, idle Redis. It starts a worker; of each kind of task a
batch is published while the worker does not consume, then run: two rates, per second. The kinds alternate, and the
table has the median of each kind's rate divided by that of `plain` in the same round.
"""

import signal
import statistics
import subprocess
import time
from collections.abc import Callable
from functools import partial

from redis.client import Pipeline

from celery_app import app, durable

BATCH, ROUNDS = 1000, 5
CONSUMED_WITHIN = 60  # s; a batch takes about 2
# The user `celery` of redis-results may write keys that begin with `tour:`.
COUNT = "tour:bench"


def count(_: str) -> None:
    """The effect: one write."""
    durable.store.incr(COUNT)


def count_once(name: str) -> None:
    """The effect with a done marker."""

    def effect(pipe: Pipeline) -> None:
        pipe.incr(COUNT)

    durable.once(f"tour:bench:{name}", effect, ttl=60)


KINDS = {
    "plain": app.task(count, name="bench.plain", acks_late=False),  # acknowledged before it runs, as Celery does
    "late": app.task(count, name="bench.late"),
    "marked": app.task(count_once, name="bench.marked"),
    "outboxed": app.task(count, name="bench.outboxed", outbox=True),
    "guarded": app.task(count_once, name="bench.guarded", outbox=True),
}


def rate(step: Callable[[], None]) -> float:
    """Tasks per second of a step."""
    began = time.perf_counter()
    step()
    return BATCH / (time.perf_counter() - began)


def publish(kind: str, turn: int) -> None:
    """Publish a batch."""
    for number in range(BATCH):
        KINDS[kind].delay(f"{turn}-{number}-{kind}")


def consume(kind: str) -> None:
    """Run the waiting batch."""
    app.control.add_consumer("low")  # without a reply, which would take a second
    deadline = time.monotonic() + CONSUMED_WITHIN
    while (count := int(durable.store.get(COUNT) or 0)) < BATCH:
        if time.monotonic() > deadline:
            raise SystemExit(f"{kind}: {count} of {BATCH} tasks had their effect; the worker's errors are above")
        time.sleep(0.005)


def measure() -> None:
    """Print the table."""
    published: dict[str, list[float]] = {kind: [] for kind in KINDS}
    run: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for turn in range(ROUNDS + 1):
        for kind in KINDS:
            app.control.cancel_consumer("low", reply=True)
            durable.store.delete(COUNT)
            rates = rate(partial(publish, kind, turn)), rate(partial(consume, kind))
            if turn:  # the first round warms up
                published[kind].append(rates[0])
                run[kind].append(rates[1])
    print("| task | published /s | of plain | run /s | of plain |\n|---|--:|--:|--:|--:|")
    for kind in KINDS:
        cells = [kind]
        for rates_of in (published, run):
            ratios = [own / plain for own, plain in zip(rates_of[kind], rates_of["plain"], strict=True)]
            cells += [f"{statistics.median(rates_of[kind]):.0f}", f"{statistics.median(ratios):.0%}"]
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    """Start a worker, measure, stop it."""
    command = ["celery", "-A", "celery_app", "worker", "--queues=low", "--concurrency=2", "--loglevel=ERROR"]
    worker = subprocess.Popen([*command, "--include=protections", "--hostname=bench@%h"])
    try:
        while not app.control.ping(timeout=1):
            pass
        measure()
    finally:
        worker.send_signal(signal.SIGTERM)
        worker.wait(30)
