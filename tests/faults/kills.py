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
from python_on_whales import Container
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

Services = dict[str, dict[str, object]]  # of Compose


def small_workers(kind: str, **more: object) -> Services:
    """A service <kind>-<pool> for each pool; `more` are further keys of each."""
    return {
        f"{kind}-{pool}": {
            "extends": {"file": str(ROOT / "compose.yaml"), "service": "worker-low"},
            "command": f"python worker.py low --pool={pool} --concurrency={SLOTS[pool]} --loglevel=WARNING",
            "scale": CONTAINERS,
            "healthcheck": {"disable": True},  # a program in each container every 5 s takes a tenth of a core
            **more,
        }
        for pool in POOLS
    }


@contextmanager
def stack_of(services: Services) -> Iterator[Stack]:
    """Both Redis, and the containers of these services, not started; removed afterwards, unless KEEP=1."""
    memory = {"REDIS_MAXMEMORY": "1gb", "REDIS_MEMORY_LIMIT": "2g"}  # a million runs take 70 MB in the ledger
    os.environ.update({**defaults(), **memory, "COMPOSE_PROJECT_NAME": PROJECT, "TASK_EVENTS": "false"})
    with tempfile.TemporaryDirectory(prefix="kills-") as folder, changed() as admin:
        file = Path(folder) / "compose.yaml"
        file.write_text(yaml.safe_dump({"services": services}))
        stack = Stack(PROJECT, admin, file)
        try:
            stack.up("redis", "redis-results")
            stack.compose.create(list(services))
            yield stack
        finally:
            if os.environ.get("KEEP") != "1":
                stack.down()


class Publisher:
    """A client container that publishes (faults/numbered.py). Two publishers need different numbers."""

    def __init__(self, stack: Stack, seed: int, rate: float, first: int = 0, options: Sequence[str] = ()) -> None:
        self._stack, self._first, self._name = stack, first, f"{stack.project}-publisher-{first}"
        stack.start_client(
            self._name,
            *("python", "/numbered.py", *map(str, (rate, MOST_WAITING, seed, first))),
            options=[f"--volume={ROOT}/tests/faults/numbered.py:/numbered.py:ro", "--env=PYTHONPATH=/app", *options],
        )

    @property
    def alive(self) -> bool:
        """Whether it publishes."""
        return bool(self._stack.docker.container.list(filters=[("name", f"^{self._name}$")]))

    def stop(self) -> tuple[set[int], set[int]]:
        """End it; returns the numbers of the tasks that it has published, and of those whose publish raised."""
        self._stack.docker.container.inspect(self._name).kill("SIGTERM")
        count = partial(redis_results, self._stack, "HGET", "ledger:submitted", self._first)
        end, raised = json.loads(poll_until(count, "the publisher's count", 90))
        return set(range(self._first, end)) - set(raised), set(raised)


def redis_results(stack: Stack, *command: object) -> Any:
    """A command on redis-results."""
    return stack.inside.call(run.results_redis, *command)


class Soak:
    """A stack under load, what was done to it, and what went wrong."""

    def __init__(self, stack: Stack, seed: int) -> None:
        self.stack, self.seed, self.random = stack, seed, Random(seed)
        self.wrong: list[str] = []
        self._kills: list[Kill] = []
        self._publishers: list[Publisher] = []
        self._submitted, self._uncertain = set[int](), set[int]()
        self._began = time.monotonic()

    # --- Load ---

    def publish(self, *options: Any, **more: Any) -> Publisher:
        """Start a publisher; the arguments are further ones of Publisher."""
        self._publishers.append(Publisher(self.stack, self.seed, *options, **more))
        return self._publishers[-1]

    def stop(self, publisher: Publisher) -> None:
        """Stop a publisher."""
        self._publishers.remove(publisher)
        submitted, uncertain = publisher.stop()
        self._submitted |= submitted
        self._uncertain |= uncertain

    def wait_for_a_run(self) -> None:
        """Wait until the workers run tasks."""
        poll_until(lambda: redis_results(self.stack, "LLEN", "ledger:numbered"), "the first run", 120)

    # --- Workers ---

    def workers(self, kind: str) -> list[Container]:
        """The containers of a kind of small workers, one pool after the other."""
        pools = [sorted(self.stack.containers(f"{kind}-{pool}"), key=self.name) for pool in POOLS]
        return [worker for each in zip(*pools, strict=True) for worker in each]

    def kill(self, worker: Container) -> None:
        """Kill all processes of a worker at once, and start it again."""
        if not all(publisher.alive for publisher in self._publishers):
            raise RuntimeError("the publisher has ended")
        sent = time.time()
        try:
            worker.kill()
            self._kills.append(Kill(node(worker), sent, time.time()))
            worker.start()
        except DockerException as error:
            self.wrong.append(f"{self.name(worker)} was not killed, or not started again: {error}")
        self.say(f"kill {len(self._kills)}: {self.name(worker)}")

    def name(self, worker: Container) -> str:
        """A container's name without that of the project."""
        return worker.name.removeprefix(f"{self.stack.project}-")

    def say(self, text: str) -> None:
        """Print what was done, and how far the load is."""
        say(f"{text}; {poll_until(self._progress, 'Redis to answer', 60)}")

    def _progress(self) -> str:
        runs, waiting = redis_results(self.stack, "LLEN", "ledger:numbered"), self.stack.inside.call(run.backlog)
        return f"{runs} runs, {waiting} messages in the broker"

    # --- The end ---

    def end(self) -> tuple[dict[str, object], list[Run]]:
        """Stop publishing, wait until everything is done, and judge. Returns what the result shows, and all runs."""
        for publisher in list(self._publishers):
            self.stop(publisher)
        stopped = time.monotonic()
        say("publishing has ended; waiting for the remaining tasks")
        left = drain(self.stack)
        drained, runs = time.monotonic(), list(ledger(self.stack))
        judged, took = judge(self._submitted, self._uncertain, runs, self._kills), stopped - self._began
        self.wrong += what_is_wrong(judged, left)
        figures: dict[str, object] = {
            "workers killed": len(self._kills),
            "tasks submitted": f"{len(self._submitted)} in {took:.0f} s: {len(self._submitted) / took:.0f} per second",
            "publishes that raised": len(self._uncertain),
            "tasks applied": judged.applied,
            "lost": len(judged.lost),
            "runs": len(runs),
            "of redelivered messages": judged.redelivered,
            "twice, after a kill": judged.attributed,
            "twice, without": len(judged.unattributed),
            "before their ETA": len(judged.early),
            "drained within": f"{drained - stopped:.0f} s",
            "keys left": len(left),
        }
        return figures, runs


def node(worker: Container) -> str:
    """The name of a worker in the ledger."""
    return f"low@{worker.config.hostname}"


def wait_until(when: float) -> None:
    """Sleep, unless it is later (epoch s)."""
    time.sleep(max(0.0, when - time.time()))


def kill_in_turn(soak: Soak, every: float, lasts: float) -> None:
    """Kill a random worker of one pool after another."""
    for worker in soak.workers("worker"):
        worker.start()
    soak.publish(RATE)
    soak.wait_for_a_run()
    began = time.time()
    for turn, pool in zip(range(1, int(lasts / every) + 1), cycle(POOLS), strict=False):
        wait_until(began + turn * every)
        soak.kill(soak.random.choice(soak.stack.containers(f"worker-{pool}")))
    wait_until(began + lasts)


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
        "tasks run before their ETA": judged.early,
        "keys left in the broker": left,
    }
    return [f"{len(each)} {what}: {', '.join(map(str, each[:10]))}" for what, each in found.items() if each]


def times(arguments: list[str]) -> tuple[float, float, int]:
    """The values of KILLS, FOR and SEED, which are printed. Raises SystemExit."""
    every, lasts, seed = seconds("KILLS", arguments[0]), seconds("FOR", arguments[1]), number(arguments[2])
    if not 0 < every <= lasts:
        raise SystemExit(f"KILLS: the time between two kills, above 0 and at most FOR; it is {arguments[0]}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print(f"soak: KILLS={arguments[0]} FOR={arguments[1]} SEED={seed}")
    return every, lasts, seed


def main(arguments: list[str]) -> int:
    """Run it; exit code 1 if something is wrong."""
    every, lasts, seed = times(arguments)
    with stack_of(small_workers("worker")) as stack:
        soak = Soak(stack, seed)
        kill_in_turn(soak, every, lasts)
        figures, _ = soak.end()
    print("\n" + report({"transport": os.environ["TRANSPORT"], **figures}, soak.wrong))
    return 1 if soak.wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
