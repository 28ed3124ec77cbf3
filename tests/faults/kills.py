"""`make soak KILLS=15s FOR=60m SEED=7`: kills a worker every 15 s under load, then compares the ledger with the tasks.

On a separate stack: many small workers of the three pools, tasks without the outbox. Each must be applied, and may run
twice only if a worker was killed meanwhile; the broker must be empty at the end. TRANSPORT=stock can lose tasks here.
"""

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import cycle
from pathlib import Path
from random import Random
from textwrap import fill
from typing import Any

import yaml
from python_on_whales.exceptions import DockerException

from faults.arena import changed, say
from faults.runs import Judged, Kill, Run, judge, left_over
from faults.soak import number, seconds
from stack import inside as run
from stack.poll import poll_until
from stack.stack import ROOT, Stack, defaults

PROJECT = "celery-stack-kills"
POOLS = ("prefork", "threads", "solo")
CONTAINERS = 4  # of each pool
SLOTS = {"prefork": 2, "threads": 4, "solo": 1}
RATE = 330  # tasks per second: a million in 51 minutes
MOST_WAITING = 5000  # messages in the queue, then publishing pauses
DRAINED_WITHIN = 240  # s; the stock transport redelivers after 94 s
LOOKS = 3  # at an empty broker, one per second: a message on its way to a stock worker is in no key
PAGE = 10_000  # lines of the ledger at once


@contextmanager
def small_workers() -> Iterator[Stack]:
    """Both Redis and the workers; removed afterwards, unless KEEP=1."""
    memory = {"REDIS_MAXMEMORY": "1gb", "REDIS_MEMORY_LIMIT": "2g"}  # a million runs take 70 MB in the ledger
    os.environ.update({**defaults(), **memory, "COMPOSE_PROJECT_NAME": PROJECT, "TASK_EVENTS": "false"})
    with tempfile.TemporaryDirectory(prefix="kills-") as folder, changed() as admin:
        file = Path(folder) / "compose.yaml"
        services = {
            f"worker-{pool}": {
                "extends": {"file": str(ROOT / "compose.yaml"), "service": "worker-low"},
                "command": f"python worker.py low --pool={pool} --concurrency={SLOTS[pool]} --loglevel=WARNING",
                "scale": CONTAINERS,
                "healthcheck": {"disable": True},  # a program in each container every 5 s takes a tenth of a core
            }
            for pool in POOLS
        }
        file.write_text(yaml.safe_dump({"services": services}))
        stack = Stack(PROJECT, admin, file)
        try:
            stack.up("redis", "redis-results", *services)
            yield stack
        finally:
            if os.environ.get("KEEP") != "1":
                stack.down()


class Publisher:
    """The client container that publishes (faults/numbered.py)."""

    def __init__(self, stack: Stack, seed: int) -> None:
        self._stack, self._name = stack, f"{stack.project}-publisher"
        stack.start_client(
            self._name,
            *("python", "/numbered.py", str(RATE), str(MOST_WAITING), str(seed)),
            options=[f"--volume={ROOT}/tests/faults/numbered.py:/numbered.py:ro", "--env=PYTHONPATH=/app"],
        )

    @property
    def alive(self) -> bool:
        """Whether it publishes."""
        return bool(self._stack.docker.container.list(filters=[("name", f"^{self._name}$")]))

    def stop(self) -> tuple[set[int], set[int]]:
        """End it; returns the numbers of the tasks that it has published, and of those whose publish raised."""
        self._stack.docker.container.inspect(self._name).kill("SIGTERM")
        text = poll_until(lambda: redis_results(self._stack, "GET", "ledger:submitted"), "the publisher's count", 90)
        count, raised = json.loads(text)
        return set(range(count)) - set(raised), set(raised)


def redis_results(stack: Stack, *command: object) -> Any:
    """A command on redis-results."""
    return stack.inside.call(run.results_redis, *command)


def kill_in_turn(
    stack: Stack, publisher: Publisher, every: float, lasts: float, random: Random
) -> tuple[list[Kill], list[str]]:
    """Kill a random worker of one pool after another, all its processes at once, and start it again.

    Returns the kills, and what went wrong.
    """
    kills, wrong, workers = list[Kill](), list[str](), {pool: stack.containers(f"worker-{pool}") for pool in POOLS}
    poll_until(lambda: redis_results(stack, "LLEN", "ledger:numbered"), "the first run", 120)
    began = time.time()
    for turn, pool in zip(range(1, int(lasts / every) + 1), cycle(POOLS), strict=False):
        time.sleep(max(0.0, began + turn * every - time.time()))
        if not publisher.alive:
            raise RuntimeError("the publisher has ended")
        worker, sent = random.choice(workers[pool]), time.time()
        name = worker.name.removeprefix(f"{stack.project}-")
        try:
            worker.kill()
            kills.append(Kill(f"low@{worker.config.hostname}", sent, time.time()))
            worker.start()
        except DockerException as error:
            wrong.append(f"{name} was not killed, or not started again: {error}")
        say(f"kill {turn}: {name}; {poll_until(lambda: progress(stack), 'Redis to answer', 60)}")
    time.sleep(max(0.0, began + lasts - time.time()))
    return kills, wrong


def progress(stack: Stack) -> str:
    """How far it is."""
    runs, waiting = redis_results(stack, "LLEN", "ledger:numbered"), stack.inside.call(run.backlog)
    return f"{runs} runs, {waiting} messages in the broker"


def drain(stack: Stack) -> list[str]:
    """Wait until the broker has only expected keys, with a time-out; returns the others."""
    deadline, empty, left = time.monotonic() + DRAINED_WITHIN, 0, list[str]()
    while empty < LOOKS and time.monotonic() < deadline:
        time.sleep(1)
        left = list(left_over(poll_until(lambda: stack.inside.call(run.keys, "redis", "admin", "admin"), "keys", 60)))
        empty = 0 if left else empty + 1
    return left


def ledger(stack: Stack) -> Iterator[Run]:
    """All of it."""
    for start in range(0, redis_results(stack, "LLEN", "ledger:numbered"), PAGE):
        page = partial(redis_results, stack, "LRANGE", "ledger:numbered", start, start + PAGE - 1)
        yield from map(Run.read, poll_until(page, "a page of the ledger", 60))


def report(figures: dict[str, object], wrong: list[str]) -> str:
    """The result as text."""
    width = max(map(len, figures))
    lines = [f"{name:<{width}}  {value}" for name, value in figures.items()]
    return "\n".join([*lines, *(fill(f"WRONG: {each}", 80) for each in wrong)])


def what_is_wrong(judged: Judged, left: list[str]) -> list[str]:
    """Empty if the ledger is whole, and the broker empty."""
    found: dict[str, Sequence[object]] = {
        "tasks lost": judged.lost,
        "tasks run twice although no worker of theirs was killed": judged.unattributed,
        "tasks run that nobody submitted": judged.unknown,
        "keys left in the broker": left,
    }
    return [f"{len(each)} {what}: {', '.join(map(str, each[:10]))}" for what, each in found.items() if each]


def main(arguments: list[str]) -> int:
    """Run it; exit code 1 if something is wrong."""
    every, lasts, seed = seconds("KILLS", arguments[0]), seconds("FOR", arguments[1]), number(arguments[2])
    if not 0 < every <= lasts:
        raise SystemExit(f"KILLS: the time between two kills, above 0 and at most FOR; it is {arguments[0]}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print(f"soak: KILLS={arguments[0]} FOR={arguments[1]} SEED={seed}")
    with small_workers() as stack:
        publisher, began = Publisher(stack, seed), time.monotonic()
        kills, wrong = kill_in_turn(stack, publisher, every, lasts, Random(seed))
        submitted, uncertain = publisher.stop()
        stopped = time.monotonic()
        say("publishing has ended; waiting for the remaining tasks")
        left = drain(stack)
        drained, runs = time.monotonic(), list(ledger(stack))
    judged, took = judge(submitted, uncertain, runs, kills), stopped - began
    figures = {
        "transport": os.environ["TRANSPORT"],
        "workers killed": f"{len(kills)}, {', '.join(POOLS)} in turn",
        "tasks submitted": f"{len(submitted)} in {took:.0f} s: {len(submitted) / took:.0f} per second",
        "publishes that raised": len(uncertain),
        "tasks applied": judged.applied,
        "lost": len(judged.lost),
        "runs": len(runs),
        "of redelivered messages": judged.redelivered,
        "twice, after a kill": judged.attributed,
        "twice, without": len(judged.unattributed),
        "drained within": f"{drained - stopped:.0f} s",
        "keys left": len(left),
    }
    wrong += what_is_wrong(judged, left)
    print("\n" + report(figures, wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
