"""Injects faults into a stack under load, and evaluates the ledger."""

import base64
import itertools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml
from python_on_whales import Container
from python_on_whales.exceptions import DockerException

from faults import malformed
from faults.injections import Injection, redis_cli
from faults.ledger import Applied, Submitted, Verdict
from settings import DELIVERY
from stack import inside as run
from stack.poll import poll_until
from stack.secrets import leaks
from stack.stack import PROJECT, ROOT, Stack, changed_app, defaults

RATE = 10  # tasks per second for each low worker; one with two slots runs about 15 of this mix
# A lost task is published again by the reconciler, and may then be held by a worker that is killed.
DRAINED_WITHIN = (
    DELIVERY.republish_after + DELIVERY.recheck_after + DELIVERY.reconcile_interval + DELIVERY.visibility_timeout + 40
)
PUBLISH_TAKES = 16  # s, at most; see docs/delivery.md
LONG = 12  # s that a long task runs: twice the soft shutdown
PEER = os.environ.get("PEER", "")  # `make test-faults PEER=celery`: faults/peer.py instead of celery-durable
PEERS = ("celery", "celery-redis-plus")
OUTBOX = os.environ.get("OUTBOX") != "no" and not PEER  # `make test-faults OUTBOX=no`
CELERY = ("worker-high", "worker-low", "beat", "producer", "client")
PEER_IMAGE = "celery-stack/bench:local"  # it has the peers' packages; bench/compose.yaml


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault: how it is injected, how long it lasts, and what must hold besides no task lost or applied twice."""

    name: str
    what: str  # what happens, in a sentence
    watch: str  # where to see it
    inject: Injection
    lasts: float = 0  # s until it is undone
    resumed: float | None = None  # s within which tasks that it interrupted have begun again
    redelivered: float | None = None  # s within which tasks that were running are applied
    recovered: float | None = None  # s after it is over within which tasks are applied again
    blocked: float = PUBLISH_TAKES
    check: Callable[["Arena", Verdict], None] | None = None  # an additional check
    admin: bool = False  # needs rights that only the fault tests' Redis gives
    small_disk: bool = False
    ends_publisher: bool = False
    data_lost: bool = False  # by a Redis: without the outbox tasks are lost
    beat: bool = False  # needs one; peers have none here
    durable: bool = False  # a task counts as accepted once it is on the disk
    busy: bool = False  # injected while every slot of the low workers runs a long task
    first: str = "test-faults"  # the first of `make test`, `test-all`, `test-faults` that includes it


class Arena:
    """A stack under load: the ids of its tasks, those submitted in addition to the publisher's, and their effects."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.prefix = f"u{uuid4().hex[:6]}"
        self.besides = Submitted()
        self._numbers = itertools.count()
        self._earlier = stack.inside.call(run.last_dead_letter)

    # --- Tasks ---

    def submit(self, task: str, count: int, *arguments: object, **options: object) -> list[str]:
        """Submit tasks in addition to the publisher's; returns their ids."""
        ids = self.new_ids(task.rpartition(".")[2], count)
        self.stack.inside.call(run.submit, task, ids, list(arguments), options)
        self.accept(ids)
        return ids

    def submit_doomed(self, task: str, count: int, *arguments: object, **options: object) -> None:
        """Submit tasks whose effect must never be applied."""
        self.stack.inside.call(run.submit, task, self.new_ids("doomed", count), list(arguments), options)

    def occupy(self) -> None:
        """Let every slot of the low workers run a long task."""
        stats = self.stack.inside.call(run.inspect, "stats")
        count: int = sum(each["pool"]["max-concurrency"] for node, each in stats.items() if node.startswith("low@"))
        tasks = set(self.submit("chaos.ledger.apply", count, LONG, priority=0))
        poll_until(
            lambda: tasks <= self.applied().executing(), f"{count} slots that run a long task", 60, interval=0.05
        )

    def new_ids(self, kind: str, count: int) -> list[str]:
        """Ids of tasks that do not exist yet."""
        return [f"{self.prefix}-{kind}{number}" for number in itertools.islice(self._numbers, count)]

    def accept(self, ids: list[str]) -> None:
        """Count submitted tasks as those of the publisher."""
        for times in (self.besides.begun, self.besides.accepted):
            times.update(dict.fromkeys(ids, time.time()))

    # --- Their effects ---

    def applied(self) -> Applied:
        """The ledger's entries of this load."""
        return Applied.read(self.stack.inside, self.prefix)

    def dead_letters(self) -> list[dict[str, str]]:
        """The dead letters of this load."""
        return [
            letter
            for letter in self.stack.inside.call(run.dead_letters, self._earlier)
            if letter["id"].startswith((self.prefix, malformed.ID)) or not letter["id"]
        ]

    def malformed_dead_letters(self) -> list[str]:
        """The kinds of malformed message among them; each payload is as it came, byte for byte."""
        names = {raw: name for name, raw in malformed.kinds(self.stack.inside.call(run.largest_message)).items()}
        found = self.stack.inside.call(run.dead_payloads, self._earlier)
        return [names.get(base64.b64decode(payload), "none of the kinds") for payload in found]

    def clean(self) -> None:
        """Remove the data of this load from Redis."""
        self.stack.inside.call(run.drop_dead_letters, [letter["entry"] for letter in self.dead_letters()])
        self.stack.inside.call(run.results_redis, "DEL", "ledger:runs", "ledger:effects")

    # --- Containers ---

    def low_workers(self) -> list[Container]:
        """The containers of worker-low."""
        return self.stack.containers("worker-low")

    def publisher(self) -> list[Container]:
        """The publisher's container, while there is one."""
        return self.stack.docker.container.list(all=True, filters=[("name", f"^{self.stack.project}-publisher$")])


class Publisher:
    """A client container that publishes tasks (faults/publisher.py), and its log on the host."""

    def __init__(self, arena: Arena, durable: bool) -> None:
        self._arena, self._durable = arena, durable
        self._folder = Path(tempfile.mkdtemp(prefix="faults-"))
        self._folder.chmod(0o777)  # the container's user writes to it
        self._starts = 0

    def start(self) -> None:
        """Start; a second time with other ids."""
        self._remove()  # of a run that was killed
        arena, first = self._arena, self._starts * 1_000_000
        self._starts += 1
        rate = RATE * len(arena.low_workers())
        options = [f"--volume={self._folder}:/log", f"--volume={ROOT}/tests/faults/publisher.py:/publisher.py:ro"]
        command = ["python", "/publisher.py", arena.prefix, str(rate), "/log/log", f"--first={first}"]
        arena.stack.start_client(
            f"{arena.stack.project}-publisher",
            *command,
            *(["--on-disk"] if self._durable else []),
            options=[*options, "--env=PYTHONPATH=/app"],
        )

    def restart(self) -> None:
        """Start again after it was killed."""
        self._gone(30)
        self.start()

    def submitted(self) -> Submitted:
        """All that was submitted so far."""
        found = Submitted.read(self._folder / "log")
        found.begun.update(self._arena.besides.begun)
        found.accepted.update(self._arena.besides.accepted)
        return found

    def stop(self) -> None:
        """Publish no more tasks; calls that were begun are still completed."""
        for container in self._arena.publisher():
            with suppress(DockerException):  # it has ended, and is being removed
                container.kill("SIGTERM")
        self._gone(120)

    def remove(self) -> None:
        """Kill it, and remove its files."""
        self._remove()
        shutil.rmtree(self._folder)

    def _remove(self) -> None:
        for container in self._arena.publisher():
            with suppress(DockerException):
                container.remove(force=True)
        self._gone(30)

    def _gone(self, within: float) -> None:
        poll_until(lambda: not self._arena.publisher(), "the publisher's container to be gone", within)


@contextmanager
def load(arena: Arena, durable: bool = False) -> Iterator[Publisher]:
    """Publish tasks within the block."""
    publisher = Publisher(arena, durable)
    try:
        publisher.start()
        yield publisher
    finally:
        publisher.remove()


def variant() -> str:
    """What `make test-faults` was called with: `stock`, `atomic-without-outbox`, or the peer."""
    return PEER or (DELIVERY.transport if OUTBOX else f"{DELIVERY.transport}-without-outbox")


# --- One row ---


def run_fault(stack: Stack, fault: Fault) -> Verdict:
    """Inject a fault under load, and evaluate the result. `wrong` of the verdict lists what did not hold."""
    arena = Arena(stack)
    canary, started = f"canary-{uuid4().hex}", datetime.now(UTC)
    try:
        with load(arena, fault.durable) as publisher:
            verdict = at_the_right_moment(arena, publisher, fault)
            stack.inside.call(run.publish, "chaos.ledger.apply", [[canary]])
            say(f"now: {fault.what}")
            begun, over = inflict(arena, publisher, fault)
            verdict.wrong += healthy_again(stack)
            time.sleep(5)  # of ordinary load
            publisher.stop()
            stopped = time.time()
            say("publishing has ended; waiting for the remaining tasks")
            verdict.left = drain(arena, publisher)
            verdict.judge(publisher.submitted(), arena.applied(), begun, over, stopped)
        verdict.dead = len(arena.dead_letters())
        hold(fault, verdict)
        if not PEER:
            verdict.wrong += leaks(stack, canary, since=started)
        if fault.check:
            fault.check(arena, verdict)
    finally:
        arena.clean()
    say(verdict.sentence())
    return verdict


def inflict(arena: Arena, publisher: Publisher, fault: Fault) -> tuple[float, float]:
    """Inject a fault and undo it; returns when it began and when it was over (epoch s)."""
    begun = time.time()
    with fault.inject(arena):
        time.sleep(fault.lasts)
    over = time.time()
    if fault.ends_publisher:
        publisher.restart()
    return begun, over


def healthy_again(stack: Stack) -> list[str]:
    """Wait until the stack is healthy; returns an error if that times out."""
    try:
        stack.wait_healthy()
    except AssertionError as error:
        say(str(error))
        return [str(error)]
    say("over: all services are healthy")
    return []


def say(text: str) -> None:
    """Print a line with the time."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def prepare(stack: Stack) -> None:
    """Two low workers, nothing in the queues."""
    stack.scale(worker_low=2)
    if PEER:
        start_afresh(stack)
    stack.wait_healthy()
    stack.wait_idle()


def start_afresh(stack: Stack) -> None:
    """Of a peer workers may hang after a row, and messages may be redelivered without end."""
    workers = ["worker-low", "worker-high"]
    stack.compose.kill(workers)
    for service in ("redis", "redis-results"):
        redis_cli(stack, service, "FLUSHALL")
    stack.compose.start(workers)
    number = sum(len(stack.containers(service)) for service in workers)
    poll_until(lambda: len(stack.inside.call(run.inspect, "ping")) == number, f"{number} workers to answer", 120)


def at_the_right_moment(arena: Arena, publisher: Publisher, fault: Fault) -> Verdict:
    """Wait until tasks are executing, held by workers and being published at the same time; returns the counts."""

    def moment() -> Verdict | None:
        since = time.time() - 1
        executing = arena.applied().executing()
        held = len(set(arena.stack.inside.call(run.taken, arena.prefix)) - executing)
        published = publisher.submitted().published_since(since)
        # With the atomic transport a worker whose slots are all busy holds nothing else.
        if executing and (held or fault.busy) and published:
            return Verdict(fault.name, len(executing), held, published)
        return None

    if fault.busy:
        arena.occupy()
    found = poll_until(moment, "tasks executing, held and published at once", 60, interval=0.05)
    assert found is not None
    say(f"tasks: {found.executing} executing, {found.held} held, {found.published} published in the last second")
    return found


def drain(arena: Arena, publisher: Publisher) -> int:
    """Wait until every accepted task is applied and no worker holds its message, with a time-out.

    Returns how many messages are still held.
    """
    deadline = time.monotonic() + DRAINED_WITHIN
    while True:
        tasks = publisher.submitted().accepted.keys() - {task for task, _ in arena.applied().effects}
        held = len(arena.stack.inside.call(run.taken, arena.prefix))
        if not (tasks or held) or time.monotonic() > deadline:
            return held
        time.sleep(1)


def hold(fault: Fault, verdict: Verdict) -> None:
    """Check what must hold in every row, and the limits of this one."""
    bounds: dict[str, tuple[float, float | None]] = {
        "tasks lost": (verdict.lost, 0 if OUTBOX or (DELIVERY.transport == "atomic" and not fault.data_lost) else None),
        "messages not requeued": (verdict.left, 0),
        "effects applied twice": (verdict.twice, 0),
        "s until run again": (verdict.resumed, fault.resumed),
        "s until redelivered": (verdict.redelivered, fault.redelivered),
        "s until recovered": (verdict.recovered, fault.recovered),
        "s that a publish took": (verdict.blocked, fault.blocked),
    }
    for what, (seen, most) in bounds.items():
        if most is not None and seen > most:
            verdict.wrong.append(f"{seen:g} {what}, at most {most:g}")


# --- A separate stack ---


@contextmanager
def on_a_small_disk(stack: Stack) -> Iterator[None]:
    """The broker, emptied, on a disk of 16 MB within the block."""
    with changed(small_disk=True) as file:
        Stack(stack.project, file).compose.up(["redis"], detach=True, quiet=True)
        try:
            yield
        finally:
            stack.compose.up(["redis"], detach=True, quiet=True)
            stack.wait_healthy()


@contextmanager
def own_stack(delivery: Mapping[str, object] | None = None) -> Iterator[Stack]:
    """A stack whose Redis have an admin user; removed afterwards, unless KEEP=1. `delivery`: fields of Config."""
    if PEER and PEER not in PEERS:
        raise SystemExit(f"PEER: {PEER!r}; choose one of {', '.join(PEERS)}")
    os.environ.update(defaults())
    with changed({**({} if OUTBOX else {"outbox": False}), **(delivery or {})}) as file:
        stack = Stack(PROJECT, file)
        try:
            stack.up(*(("redis", "redis-results", "worker-high", "worker-low") if PEER else ()))
            yield stack
        finally:
            if os.environ.get("KEEP") != "1":
                stack.down()


@contextmanager
def changed(delivery: Mapping[str, object] | None = None, small_disk: bool = False) -> Iterator[Path]:
    """A Compose file that gives both Redis an admin user and, optionally, changes DELIVERY or the broker's disk."""
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        services: dict[str, dict[str, Any]] = {}
        volumes: dict[str, Any] = {}
        for service, acl in (("redis", "broker"), ("redis-results", "results")):
            file = folder / f"{acl}.acl"
            file.write_text((ROOT / f"secrets/redis_{acl}.acl").read_text() + "user admin on >admin ~* &* +@all\n")
            file.chmod(0o444)
            command = [
                "/etc/redis/redis.conf",
                "--maxmemory",
                "${REDIS_MAXMEMORY}",
                "--aclfile",
                "/etc/redis/tests.acl",
            ]
            services[service] = {"command": command, "volumes": [f"{file}:/etc/redis/tests.acl:ro"]}
        if small_disk:
            services["redis"]["volumes"].append("small-disk:/data")
            options = {"type": "tmpfs", "device": "tmpfs", "o": "size=16m,uid=999,gid=999"}
            volumes["small-disk"] = {"driver": "local", "driver_opts": options}
        if delivery:
            environment = {"DELIVERY": json.dumps(delivery)}
            services.update({service: {"environment": environment} for service in CELERY})
        if PEER:
            services.update(dict.fromkeys(CELERY, peer_service(folder)))
        compose = folder / "compose.yaml"
        compose.write_text(yaml.safe_dump({"services": services, "volumes": volumes}))
        yield compose


def peer_service(folder: Path) -> dict[str, Any]:
    """What Compose changes of a service to run faults/peer.py."""
    app = changed_app(folder, ())
    shutil.copyfile(ROOT / "tests/faults/peer.py", app / "celery_app.py")
    return {
        "image": PEER_IMAGE,
        "user": "10001:10001",
        "working_dir": "/app",
        "volumes": [f"{app}:/app:ro"],
        "environment": {"PEER": PEER, "PYTHONPATH": "/app", "REMAP_SIGTERM": "SIGQUIT"},
        "healthcheck": {"disable": True},
    }
