"""Reads the broker: all values of a scrape in one pipelined round trip, at a cost independent of queue depth."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from .heads import HeadAges
from .settings import SettingError, Settings

# Seconds to connect, to wait for a reply, and for a whole read; a scrape's answer may not take longer.
BROKER_TIMEOUT = 2.0
# Registrations that become series: whoever writes to the broker can write any number of them.
MAX_WORKERS = 1000
# A line of CLIENT LIST that belongs to a worker: celery-worker:<nodename>:<queue>[,<queue>], in some database.
# Redis allows no spaces in a connection's name, so a name cannot contain another field.
WORKER_CONNECTION = re.compile(rb" name=celery-worker:([^: ]+):(\S+) .* db=(\d+) ")

# A queue and one of its priority steps: one Redis list.
PriorityList = tuple[str, int]

Key = TypeVar("Key")


@dataclass(frozen=True)
class Reading:
    """The values of one read. A value that Redis refused is absent or None, and named in `problems`."""

    waiting: Mapping[PriorityList, int]
    oldest_age: Mapping[str, float]  # queue → seconds
    delayed: Mapping[str, int]
    next_due: Mapping[str, float]  # queue → epoch seconds; without queues that have no delayed message
    unacked: int | None
    dead_letters: int | None
    consumers: Mapping[str, int] | None  # queue → workers
    heartbeats: Mapping[str, float]  # node name → epoch seconds
    problems: frozenset[str]


class Broker:
    """The broker's Redis. Safe to read from several threads: simultaneous reads share one."""

    def __init__(self, settings: Settings) -> None:
        """Does not connect yet. Raises SettingError if the URL's options are not valid."""
        self._settings = settings
        self._lists: dict[PriorityList, str] = {
            (queue, step): settings.list_key(queue, step)
            for queue in settings.queues
            for step in settings.priority_steps
        }
        self._commands: list[tuple[str | int, ...]] = [
            *(command for key in self._lists.values() for command in (("LLEN", key), ("LINDEX", key, -1))),
            *(
                command
                for queue in settings.queues
                for key in [settings.delayed_key(queue)]
                for command in (("ZCARD", key), ("ZRANGE", key, 0, 0, "WITHSCORES"))
            ),
            ("HLEN", settings.unacked_key),
            ("XLEN", settings.dead_letters_key),
            ("HGETALL", settings.registry_key),
            # As two words it is not parsed by redis-py, which would build a dict of thirty fields for each connection.
            ("CLIENT", "LIST"),
        ]
        self._ages: HeadAges[PriorityList] = HeadAges()
        self._lock = threading.Lock()
        self._read_under_way: Future[Reading] | None = None
        try:
            self._redis = redis.Redis.from_url(
                settings.broker_url,
                username=settings.username,
                password=settings.password,
                # RESP2 needs no HELLO: no right to it, and no Redis 6.
                protocol=2,
                client_name="queue-exporter",
                socket_connect_timeout=BROKER_TIMEOUT,
                socket_timeout=BROKER_TIMEOUT,
                # No retries: the next scrape tries again, and redis-py's own retries would take several timeouts.
                retry=Retry(NoBackoff(), 0),
            )
            self._redis.connection_pool.make_connection()  # checks the options without connecting
        except (TypeError, ValueError, redis.RedisError) as error:
            raise SettingError("BROKER_URL", str(error)) from None
        self._db = str(self._redis.connection_pool.connection_kwargs.get("db", 0)).encode()

    def read(self) -> Reading:
        """Read now. Raises redis.RedisError, OSError or TimeoutError within BROKER_TIMEOUT if Redis does not answer."""
        # In a thread, because socket timeouts do not limit everything: name resolution can block for many seconds.
        with self._lock:
            if self._read_under_way is None or self._read_under_way.done():
                self._read_under_way = Future()
                threading.Thread(target=self._run, args=[self._read_under_way], daemon=True).start()
            reading = self._read_under_way
        try:
            return reading.result(BROKER_TIMEOUT)
        except TimeoutError:
            raise TimeoutError(f"no complete answer within {BROKER_TIMEOUT:g} s") from None

    def _run(self, future: Future[Reading]) -> None:
        try:
            future.set_result(self._read())
        except BaseException as error:  # raised in the thread that waits for the future
            future.set_exception(error)

    def _read(self) -> Reading:
        pipe: Any = self._redis.pipeline(transaction=False)  # Any: redis-py has no types for execute_command
        for command in self._commands:
            pipe.execute_command(*command)
        replies: list[Any] = pipe.execute(raise_on_error=False)
        now = time.time()

        if all(_is_error(reply) for reply in replies):  # e.g. a replica without its master, or no rights
            raise replies[0]
        queues, lists = self._settings.queues, 2 * len(self._lists)
        waiting = _answered(zip(self._lists, replies[0:lists:2], strict=True))
        heads = _answered(zip(self._lists, replies[1:lists:2], strict=True))
        delayed = _answered(zip(queues, replies[lists:-4:2], strict=True))
        nearest = _answered(zip(queues, replies[lists + 1 : -4 : 2], strict=True))
        unacked, dead_letters, registry, clients = (None if _is_error(reply) else reply for reply in replies[-4:])
        heartbeats, problems = _heartbeats(registry or {})
        for command, reply in zip(self._commands, replies, strict=True):
            if _is_error(reply):
                problems.add(f"{' '.join(map(str, command))}: {reply}")
        return Reading(
            waiting=waiting,
            oldest_age=self._oldest(self._ages.ages(heads, now)),
            delayed=delayed,
            next_due={queue: float(reply[1]) for queue, reply in nearest.items() if reply},
            unacked=unacked,
            dead_letters=dead_letters,
            consumers=None if clients is None else self._consumers(clients),
            heartbeats=heartbeats,
            problems=frozenset(problems),
        )

    def _oldest(self, ages: Mapping[PriorityList, float]) -> dict[str, float]:
        """Age of each queue's oldest message: the maximum of its lists, if all of them are known."""
        oldest = {}
        for queue in self._settings.queues:
            of_queue = [ages[key] for key in self._lists if key[0] == queue and key in ages]
            if len(of_queue) == len(self._settings.priority_steps):
                oldest[queue] = max(of_queue)
        return oldest

    def _consumers(self, clients: bytes) -> dict[str, int]:
        """Workers by queue: distinct node names, because a worker has about ten connections of one name."""
        workers: dict[str, set[bytes]] = {queue: set() for queue in self._settings.queues}
        for nodename, queues, db in WORKER_CONNECTION.findall(clients):
            if db != self._db:  # a worker of another application on the same Redis
                continue
            for queue in queues.decode(errors="replace").split(","):
                if queue in workers:
                    workers[queue].add(nodename)
        return {queue: len(nodenames) for queue, nodenames in workers.items()}


def _is_error(reply: object) -> bool:
    return isinstance(reply, redis.ResponseError)


def _answered(replies: Iterable[tuple[Key, Any]]) -> dict[Key, Any]:
    return {key: reply for key, reply in replies if not _is_error(reply)}


def _heartbeats(registry: Mapping[bytes, bytes]) -> tuple[dict[str, float], set[str]]:
    """Heartbeats by node name, and a problem for each registration that cannot be read."""
    heartbeats, problems = {}, set()
    for field, value in islice(registry.items(), MAX_WORKERS):
        nodename = field.decode(errors="replace")
        try:
            heartbeats[nodename] = float(json.loads(value)["heartbeat"])
        except (ValueError, TypeError, LookupError, OverflowError, RecursionError):
            problems.add(f"the registration of {nodename!r:.80} has no readable heartbeat")
    if len(registry) > MAX_WORKERS:
        problems = {f"there are more than {MAX_WORKERS} registrations, not all are read"}
    return heartbeats, problems
