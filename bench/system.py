"""The Redis that all contenders share, and their processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from redis import Redis, exceptions

from bench import tally
from bench.contenders import Contender

TICKS = os.sysconf("SC_CLK_TCK")
QUIET = 0.05  # the part of looks at idle processes at which one runs
PATIENCE = 120  # s
DELAYED = "celery-durable:delayed:celery"
# KEYS: delayed messages, see celery_durable/atomic/README.md. ARGV: numbers of the first and the last copy.
COPY_DELAYED = """
local member, due = unpack(redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES'))
local list, message = string.match(member, '^([^%z]*)%z[^%z]*%z(.*)$')
for number = tonumber(ARGV[1]), tonumber(ARGV[2]) do
    redis.call('ZADD', KEYS[1], due + number, list .. '\\0copy ' .. number .. '\\0' .. message)
end
"""


class BenchError(Exception):
    """A sample that does not count; the message says why."""


def wait(condition: Callable[[], bool], what: str, timeout: float = PATIENCE) -> None:
    """Raises BenchError."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise BenchError(f"after {timeout:g} s still waiting for {what}")
        time.sleep(0.01)


@dataclass(frozen=True)
class Count:
    """What a process had done at a time."""

    tasks: int
    total: int  # of the numbers of its tasks
    at: float  # time.monotonic()


Snapshot = list[tuple[bytes, bytes, int]]  # key, its value in Redis' own format, ms to live


class Server:
    """The Redis. The contenders use database 0, the tally another one."""

    def __init__(self) -> None:
        self.client: Redis = Redis.from_url(tally.URL, db=0)
        self._tally: Redis = Redis.from_url(tally.URL, db=tally.DB, decode_responses=True)
        wait(self._answers, "Redis to answer")
        # Its append-only file is rewritten between samples (see `empty`), not in one.
        self.client.config_set("auto-aof-rewrite-percentage", 0)

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except exceptions.ConnectionError:
            return False

    def empty(self) -> None:
        """Remove everything, also from its append-only file."""
        self.client.flushall()
        self.client.memory_purge()  # otherwise a background thread does it, during the next sample
        self.client.bgrewriteaof()
        wait(lambda: not self.client.info("persistence")["aof_rewrite_in_progress"], "the rewrite of the AOF")

    def forget(self) -> None:
        """Begin a new count."""
        self._tally.flushdb()

    def snapshot(self) -> Snapshot:
        """All keys of the contenders."""
        keys = list(self.client.scan_iter(count=1000))
        pipe = self.client.pipeline(transaction=False)
        for key in keys:
            pipe.dump(key).pttl(key)
        replies = pipe.execute()
        return [(key, value, max(ttl, 0)) for key, value, ttl in zip(keys, replies[::2], replies[1::2], strict=True)]

    def restore(self, snapshot: Snapshot) -> None:
        """Write these keys."""
        pipe = self.client.pipeline(transaction=False)
        for key, value, ttl in snapshot:
            pipe.restore(key, ttl, value, replace=True)
        pipe.execute()

    def copy_delayed(self, number: int) -> None:
        """Have so many copies of the one delayed message, each with its own id and due time."""
        for first in range(1, number, 10_000):
            self.client.eval(COPY_DELAYED, 1, DELAYED, first, min(first + 10_000, number) - 1)
        if (found := self.client.zcard(DELAYED)) != number:
            raise BenchError(f"{found} delayed messages instead of {number}")

    def counts(self) -> list[Count]:
        """Of each process."""
        replies = [text.split() for text in self._tally.hvals(tally.COUNTS)]
        return [Count(int(tasks), int(total), float(at)) for tasks, total, at in replies]

    def tasks(self) -> int:
        """How many have run."""
        return sum(count.tasks for count in self.counts())

    def waiting(self) -> int:
        """How many messages are in lists: of kombu's transport, and of those that share its format."""
        lists = self.client.scan_iter(_type="list")
        return sum(self.client.llen(key) for key in lists)

    def arrived(self) -> int:
        """How many processes have taken their first task."""
        return int(self._tally.scard(tally.ARRIVED))

    def go(self) -> None:
        """From now on no process waits for the others."""
        self._tally.set(tally.GO, 1)

    def waits(self) -> list[float]:
        """The latencies, in seconds; each is returned once."""
        waits = [float(each) for each in self._tally.lrange(tally.WAITS, 0, -1)]
        self._tally.ltrim(tally.WAITS, len(waits), -1)
        return waits

    def cpu(self) -> float:
        """Seconds that it has used."""
        info = self.client.info("cpu")
        return float(info["used_cpu_user"] + info["used_cpu_sys"])


class Processes:
    """The worker processes of a contender, with their children."""

    def __init__(self, contender: Contender, folder: Path) -> None:
        self._contender = contender
        self._log = folder / "log"
        with self._log.open("w") as log:
            self._leaders = [
                subprocess.Popen(
                    [*command.split(), *self._name(number)],
                    env={**os.environ, **contender.variables, "PROMETHEUS_MULTIPROC_DIR": str(folder)},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                for number, command in enumerate(contender.workers)
            ]

    def _name(self, number: int) -> list[str]:
        return [f"--hostname=worker{number}@%h"] if self._contender.app == "celery_app" else []

    def _stats(self) -> Iterator[tuple[int, list[str]]]:
        """Process ids with the fields of /proc/<pid>/stat that follow the name."""
        sessions = {str(leader.pid) for leader in self._leaders}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                fields = (folder / "stat").read_text().rpartition(") ")[2].split()
            except OSError:
                continue  # it has ended
            if fields[3] in sessions:
                yield int(folder.name), fields

    def cpu(self) -> float:
        """Seconds that all of them have used, including children that have ended."""
        return sum(sum(map(int, fields[11:15])) for _, fields in self._stats()) / TICKS

    def memory(self) -> float:
        """MiB, shared pages counted once (PSS)."""
        kib = 0
        for pid, _ in self._stats():
            try:
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            except OSError:
                continue  # it has ended
            kib += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return kib / 1024

    def check(self) -> None:
        """Raises BenchError if one has ended."""
        if ended := [leader.args for leader in self._leaders if leader.poll() is not None]:
            raise BenchError(f"{ended[0]!r} has ended; its last lines:\n{self.log()}")

    def settle(self) -> None:
        """Wait until they have started and are idle: for two seconds hardly one was seen running, or waiting to run."""
        deadline, quiet = time.monotonic() + PATIENCE, 0
        while quiet < 2:
            self.check()
            states = []
            for _ in range(10):
                time.sleep(0.1)
                states += [fields[0] for _, fields in self._stats()]
            quiet = quiet + 1 if states.count("R") < QUIET * len(states) else 0
            if time.monotonic() > deadline:
                raise BenchError(f"the workers are not idle after {PATIENCE} s; their last lines:\n{self.log()}")

    def log(self) -> str:
        """Its end."""
        return self._log.read_text(errors="replace")[-3000:]

    def kill(self) -> None:
        """They are not needed any more."""
        while left := [pid for pid, fields in self._stats() if fields[0] != "Z"]:
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            for leader in self._leaders:
                leader.wait(10)


@contextmanager
def workers(contender: Contender) -> Iterator[Processes]:
    """They run within the block."""
    with TemporaryDirectory() as folder:
        processes = Processes(contender, Path(folder))
        try:
            yield processes
        finally:
            processes.kill()


def publisher(contender: Contender, *arguments: object) -> subprocess.Popen[str]:
    """See bench/publish.py."""
    return subprocess.Popen(
        [sys.executable, "-m", "bench.publish", contender.app, *map(str, arguments)],
        env={**os.environ, **contender.variables},
        stdout=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> str:
    """What a publisher has printed. Raises BenchError."""
    output, _ = process.communicate(timeout=PATIENCE * 5)
    if process.returncode:
        raise BenchError(f"a publisher ended with {process.returncode}; its message is above")
    return output
