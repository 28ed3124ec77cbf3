"""Publishes numbered tasks until SIGTERM: the program of the client container of `make soak KILLS=…`.

At the end it writes to redis-results, as JSON: the number after its last one, and those whose publish raised.
"""

import argparse
import itertools
import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from random import Random
from typing import Any

from redis import RedisError

from celery_app import app, durable
from chaos import ledger

THREADS = 4  # for most of the time of a publish a thread waits for Redis
DELAYED_FOR = (1.0, 20.0)  # s; kombu's own transport holds such a message in a worker
LOOKED_EVERY = 1.0  # s

stopping, room = threading.Event(), threading.Event()


def publish(number: int, random: Random) -> None:
    """Publish a task: most are done at once; some take time, some are delayed, some retried. All priorities."""
    seconds = random.choices((0.0, 0.2, 2.0), (0.93, 0.066, 0.004))[0]
    retries = random.choices((0, 1, 2), (0.95, 0.03, 0.02))[0]
    options: dict[str, Any] = {"retry": False}  # a message that arrived in spite of a time-out would be there twice
    due = 0.0
    if random.random() < 0.1:
        delay = random.uniform(*DELAYED_FOR)
        due = time.time() + delay
        options |= random.choice(({"countdown": delay}, {"eta": datetime.fromtimestamp(due, UTC)}))
    ledger.numbered.apply_async((number, seconds, retries, due), priority=random.randrange(10), **options)


def run(numbers: Iterator[int], rate: float, seed: int, raised: list[int]) -> None:
    """Publish one task after another; the numbers of those whose publish raises are kept."""
    due = time.monotonic()
    while not stopping.wait(max(0.0, due - time.monotonic())):
        due = max(due + 1 / rate, time.monotonic() - 1)  # no burst after an interruption
        room.wait()
        number = next(numbers)
        try:
            publish(number, Random(f"{seed} {number}"))
        except Exception as error:
            print(f"{number}: {type(error).__name__}: {error}", flush=True)
            raised.append(number)


def waiting() -> int:
    """Messages in the queue."""
    pipe = durable.broker.pipeline(transaction=False)
    for name in durable.priority_lists(app.conf.task_default_queue):
        pipe.llen(name)
    return sum(pipe.execute())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("rate", type=float, help="tasks per second")
    parser.add_argument("most", type=int, help="messages that may wait in the queue")
    parser.add_argument("seed", type=int)
    parser.add_argument("first", type=int, help="number of the first task")
    options = parser.parse_args()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: stopping.set())
    app.loader.import_default_modules()
    numbers, raised = itertools.count(options.first), list[int]()
    arguments = (numbers, options.rate / THREADS, options.seed, raised)
    threads = [threading.Thread(target=run, args=arguments) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    while not stopping.is_set():
        with suppress(RedisError):
            (room.set if waiting() < options.most else room.clear)()
        stopping.wait(LOOKED_EVERY)
    room.set()
    for thread in threads:
        thread.join()
    durable.store.hset(ledger.SUBMITTED, str(options.first), json.dumps([next(numbers), raised]))


if __name__ == "__main__":
    main()
