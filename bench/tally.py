"""Imported by the apps: counts in each process what its tasks have done, and reports it to Redis 20 times a second.

One write per task would cost more than the task. Before its first task a process waits until the driver has seen all
processes arrive, so that none starts earlier than another.
"""

import os
import time
from socket import gethostname
from threading import Lock, Thread

from redis import Redis

URL = os.environ.get("BENCH_REDIS_URL", "redis://localhost:6379")
DB = 1  # the contenders use 0
COUNTS, WAITS, ARRIVED, GO = "counts", "waits", "arrived", "go"
INTERVAL = 0.05  # s


class Tally:
    """What the tasks of this process have done."""

    def __init__(self) -> None:
        self._name = f"{gethostname()} {os.getpid()}"  # unique also among containers
        self._lock = Lock()
        self._count = self._total = 0
        self._waits: list[float] = []
        self._started = False

    def add(self, number: int, sent: float | None = None) -> None:
        """A task has run. `number`: its own; `sent`: when it was published, time.monotonic()."""
        waited = None if sent is None else time.monotonic() - sent
        with self._lock:
            if not self._started:
                self._start()
            self._count += 1
            self._total += number
            if waited is not None:
                self._waits.append(waited)

    def _start(self) -> None:
        client: Redis = Redis.from_url(URL, db=DB)
        client.sadd(ARRIVED, self._name)
        while not client.exists(GO):
            time.sleep(0.005)
        self._started = True
        Thread(target=self._report, args=(client,), daemon=True).start()

    def _report(self, client: Redis) -> None:
        reported = -1
        while True:
            with self._lock:
                count, total, at = self._count, self._total, time.monotonic()
                waits, self._waits = self._waits, []
            if count != reported:
                pipe = client.pipeline(transaction=False)
                pipe.hset(COUNTS, self._name, f"{count} {total} {at}")
                if waits:
                    pipe.rpush(WAITS, *waits)
                pipe.execute()
                reported = count
            time.sleep(INTERVAL)


tally = Tally()


def _new() -> None:
    global tally
    tally = Tally()


os.register_at_fork(after_in_child=_new)  # a pool's process counts its own tasks


def add(number: int, sent: float | None = None) -> None:
    """See `Tally.add`."""
    tally.add(number, sent)
