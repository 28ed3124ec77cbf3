"""The outbox: a task that must run is written to the store first, then published, and again until it has ended.

It is used for every call of a task with `outbox=True`. If a publish fails or hangs, or the message is lost later (the
broker crashed or was emptied, a worker was killed between two commands), `republish` publishes it again with the same
task id. An entry ends when its task succeeds, fails for good, is revoked, or its message becomes a dead letter.

Each message of an entry has a number, its publication, in the header `outbox_publication`. The entry stores the newest
number; an older message does not run and does not end the entry. So of a message and its retry, or its republished
copy, only the newer runs, even if the older is delivered up to an hour after the entry has ended. Without a fault no
entry runs twice; after a fault it may, so apply its effect with `once`.

    <key_prefix>outbox                  hash: task id -> JSON, see `Entry`
    <key_prefix>outbox:publications     hash: task id -> number of the newest message
    <key_prefix>outbox:due              sorted set: task id by the time of the next check (epoch s)
    <key_prefix>outbox:ended:<task id>  number of the last message of an entry that had several
"""

import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from celery import current_task
from kombu.exceptions import OperationalError
from kombu.utils.json import dumps, loads
from redis import RedisError

from celery_durable.config import Config
from celery_durable.logs import get_logger
from celery_durable.lua import Script
from celery_durable.signals import outbox_republished
from celery_durable.times import eta_of

logger = get_logger(__name__)

PUBLICATION = "outbox_publication"  # the header

# Publishing failed, or its outcome is unknown: the message may still be in its queue.
PUBLISH_ERRORS = (OperationalError, RedisError, OSError)

BATCH = 100  # entries per claim
TIME_BUDGET = 5  # s for one call of `republish`
SEARCHED = 100  # messages per round trip; each may have max_message_bytes
ENDED_KEPT = 3600  # s

# Writes an entry. Its numbers continue after those of an earlier entry of the same id. KEYS: outbox, publications, due,
# ended. ARGV: id, JSON, time of the next check.
_WRITE = """
local number = redis.call('HINCRBY', KEYS[2], ARGV[1], 1)
local ended = number == 1 and redis.call('GET', KEYS[4])
if ended then
    number = tonumber(ended) + 1
    redis.call('HSET', KEYS[2], ARGV[1], number)
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[3], ARGV[3], ARGV[1])
"""
# Returns the number of its message.
WRITE = Script(f"{_WRITE}return number")

# The same, and publishes its message if that has the number 1. ARGV in addition: for each command its number of
# arguments and these. Returns the number, whether it was published, and the error of a command.
WRITE_AND_PUBLISH = Script(f"""
{_WRITE}
if number > 1 then
    return {{number, 0, ''}}
end
local first = 4
while first <= #ARGV do
    local last = first + tonumber(ARGV[first])
    local reply = redis.pcall(unpack(ARGV, first + 1, last))
    if type(reply) == 'table' and reply.err then
        return {{number, 1, reply.err}}
    end
    first = last + 1
end
return {{number, 1, ''}}
""")

# Whether a message may run: not if a newer one replaced it, or the entry has ended. If it may, the next check is when
# the entry should have ended. KEYS: publications, due, ended. ARGV: id, publication, time of the next check.
START = Script("""
local newest = redis.call('HGET', KEYS[1], ARGV[1])
if newest and tonumber(ARGV[2]) < tonumber(newest) then
    return 0
end
local ended = redis.call('GET', KEYS[3])
if not newest and ended and tonumber(ARGV[2]) <= tonumber(ended) then
    return 0
end
redis.call('ZADD', KEYS[2], 'XX', ARGV[3], ARGV[1])
return 1
""")

# Ends an entry, unless a newer message replaced this one. KEYS: outbox, publications, due, ended. ARGV: id,
# publication, s to keep the last number of an entry that had several messages.
END = Script("""
local newest = redis.call('HGET', KEYS[2], ARGV[1])
if not newest or tonumber(ARGV[2]) < tonumber(newest) then
    return 0
end
if tonumber(newest) > 1 then
    redis.call('SET', KEYS[4], newest, 'EX', ARGV[3])
end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
return 1
""")

# The entries that are due, each rescheduled so that no other call claims it. KEYS: outbox, publications, due. ARGV:
# now, time of the next check, max number. Returns id, JSON, publication of each.
CLAIM = Script("""
local claimed = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', ARGV[1], 'LIMIT', 0, ARGV[3])) do
    local entry = redis.call('HGET', KEYS[1], id)
    if entry then
        redis.call('ZADD', KEYS[3], ARGV[2], id)
        claimed[#claimed + 1] = {id, entry, redis.call('HGET', KEYS[2], id) or '0'}
    else
        redis.call('ZREM', KEYS[3], id)
        redis.call('HDEL', KEYS[2], id)
    end
end
return claimed
""")

# The number for the next message of a claimed entry; 0 if it has ended, was started or written again since. KEYS:
# publications, due. ARGV: id, publication and time of the next check as set by `CLAIM`.
ADVANCE = Script("""
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then
    return 0
end
if tonumber(redis.call('ZSCORE', KEYS[2], ARGV[1])) ~= tonumber(ARGV[3]) then
    return 0
end
return redis.call('HINCRBY', KEYS[1], ARGV[1], 1)
""")

# Replaces an entry that has not ended and was not written again since. KEYS: outbox, publications, due. ARGV: id, JSON,
# publication, time of the next check or "" to leave it.
REPLACE = Script("""
if redis.call('HGET', KEYS[2], ARGV[1]) == ARGV[3] then
    redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
    if ARGV[4] ~= '' then
        redis.call('ZADD', KEYS[3], 'XX', ARGV[4], ARGV[1])
    end
end
""")

ID = re.compile(rb'"id": ?"((?:[^"\\]|\\.)*)"')  # in a message


@dataclass(frozen=True)
class Entry:
    """A task to be run: all that is needed to publish it, and when it was last published."""

    name: str
    queue: str  # empty: it is published to an exchange
    headers: dict[str, Any]
    properties: dict[str, Any]
    body: Any
    options: dict[str, Any]
    published: float = 0.0  # epoch s; 0: not yet, as far as known

    @property
    def id(self) -> str:
        """The task's id."""
        return str(self.headers["id"])

    @property
    def priority(self) -> int:
        """The priority of its message, limited as by kombu."""
        priority = self.options.get("priority")
        return max(0, min(9, priority)) if isinstance(priority, int) else 0


Publish = Callable[[list[tuple[Entry, int]]], Mapping[str, Exception]]


class Outbox:
    """The entries of one app."""

    def __init__(self, config: Config, store: Callable[[], Any], sender: Any = None) -> None:
        """`store` returns this process's client of the store; `sender`: of its signals, the app."""
        self._config, self._store, self._sender = config, store, sender
        self.key = f"{config.key_prefix}outbox"
        self.publications_key, self.due_key = f"{self.key}:publications", f"{self.key}:due"

    # --- The life of an entry ---

    def write(self, entry: Entry) -> int:
        """Write an entry, replacing an earlier one of the same task (a retry). Raises RedisError.

        Returns the number of the message to publish.
        """
        return int(self._run(WRITE, self._keys(entry.id), self._arguments(entry)))

    def write_and_publish(self, entry: Entry, commands: Sequence[tuple[str, ...]]) -> tuple[int, str]:
        """`write`, and the commands that publish its message, as its publication 1, in the same step: the store is the
        broker's database. Raises RedisError.

        Returns the number of the message, and the error of a command: then the message is not published.
        """
        arguments = [*self._arguments(entry), *flattened(commands)]
        number, published, error = self._run(WRITE_AND_PUBLISH, self._keys(entry.id), arguments)
        if not published:  # an earlier task had the same id
            try:
                with self._store().pipeline() as pipe:
                    for command in renumbered(commands, number):
                        pipe.execute_command(*command)
                    pipe.execute()
            except RedisError as failed:  # the entry is written
                error = failed
        return int(number), str(error)

    def write_all(self, entries: Sequence[Entry]) -> list[int]:
        """`write` for many entries, in one round trip."""
        calls = [(self._keys(entry.id), self._arguments(entry)) for entry in entries]
        return [int(number) for number in self._run_all(WRITE, calls)]

    def due_now(self, entry: Entry, number: int) -> None:
        """Have an entry published soon, because its message is probably not in its queue. Raises RedisError."""
        arguments = [entry.id, dumps(vars(replace(entry, published=0.0))), number, 0]
        self._run(REPLACE, self._keys(entry.id), arguments)

    def not_published(self, entry: Entry, number: int, error: Exception) -> None:
        """Publishing an entry's message failed: have it published soon. The caller needs no error."""
        logger.warning("%s[%s] not published (%s): the outbox has it", entry.name, entry.id, error)
        with suppress(RedisError):  # the entry is written; this only has it published sooner
            self.due_now(entry, number)

    def start(self, task_id: str, publication: int) -> bool:
        """Whether a message of an entry may run. It may if that is unknown: without the store, or without the entry."""
        later = time.time() + self._config.republish_after
        try:
            return bool(self._run(START, self._keys(task_id)[1:], [task_id, publication, later]))
        except RedisError as error:
            logger.warning("outbox: start of %s not recorded: %s", task_id, error)
            return True

    def end(self, task_id: str, publication: int) -> None:
        """End an entry after one of its messages. If Redis is unavailable the entry stays, and runs once more."""
        try:
            self._run(END, self._keys(task_id), [task_id, publication, ENDED_KEPT])
        except RedisError as error:
            logger.warning("outbox: end of %s not recorded: %s", task_id, error)

    def wait_until_on_disk(self) -> None:
        """Wait until the written entries survive a power loss: up to a second with AOF everysec.

        For a caller that may confirm only then, after one entry or a batch. Needs Redis 7.2. Raises TimeoutError and
        RedisError.
        """
        # Shorter than the socket's timeout, and never 0, which means no limit.
        timeout = self._config.publish_socket_timeout * 2 / 3
        with self._store().pipeline(transaction=False) as pipe:
            pipe.set(f"{self.key}:barrier", "1")  # WAITAOF waits for the writes of its own connection
            pipe.execute_command("WAITAOF", 1, 0, math.ceil(timeout * 1000))
            _, (written, _) = pipe.execute()
        if not written:
            raise TimeoutError(f"the store has not written to its disk within {timeout:g} s")

    def size(self) -> int:
        """How many entries have not ended. Raises RedisError."""
        return int(self._store().hlen(self.key))

    def _keys(self, task_id: str) -> list[str]:
        return [self.key, self.publications_key, self.due_key, f"{self.key}:ended:{task_id}"]

    def _arguments(self, entry: Entry) -> list[Any]:
        """What WRITE gets of an entry."""
        return [entry.id, dumps(vars(entry)), self._next_check(entry)]

    def _run(self, script: Script, keys: list[str], arguments: list[Any]) -> Any:
        return script(self._store(), keys, arguments)

    def _run_all(self, script: Script, calls: Iterable[tuple[list[str], list[Any]]]) -> list[Any]:
        """Run a script for each keys and arguments, in one round trip."""
        store = self._store()
        run = store.register_script(script.text)
        with store.pipeline(transaction=False) as pipe:
            for keys, arguments in calls:
                run(keys=keys, args=arguments, client=pipe)
            return list(pipe.execute())

    def _next_check(self, entry: Entry) -> float:
        """When it should have ended if no fault occurs; now if it is not published."""
        if not entry.published:
            return 0.0
        return max(entry.published, eta_of(entry.headers)) + self._config.republish_after

    # --- The reconciler ---

    def republish(self, publish: Publish, broker: "BrokerView") -> dict[str, int]:
        """Publish again the entries that have not ended and are neither in a queue nor held by a worker.

        `publish` publishes entries, each with the number of its message, and returns errors by task id. Takes about
        TIME_BUDGET at most. Returns {"published", "waiting"}: how many were published, and how many still wait in their
        queue. An entry that cannot be published is logged, and does not block the others. Raises PUBLISH_ERRORS while
        the broker is unavailable; the entries that were not published are due at once then.
        """
        deadline, published, waiting = time.monotonic() + TIME_BUDGET, 0, 0
        while time.monotonic() < deadline:
            now = time.time()
            next_check = now + self._config.republish_after
            claimed = self._claim(now, next_check)
            left = {entry.id: now for entry, _ in claimed if entry}
            try:
                entries = [(entry, number) for entry, number in claimed if entry]
                here = broker.not_lost([entry for entry, _ in entries if entry.published])
                left.update(dict.fromkeys(here, now + self._config.recheck_after))
                waiting += len(here)
                lost = [(entry, number) for entry, number in entries if entry.id not in here]
                published += self._publish(lost, next_check, publish)
                for entry, _ in lost:
                    del left[entry.id]
            finally:
                if left:
                    self._store().zadd(self.due_key, left, xx=True)
            if len(claimed) < BATCH:
                break
        return {"published": published, "waiting": waiting}

    def _claim(self, now: float, next_check: float) -> list[tuple[Entry | None, int]]:
        claimed = self._run(CLAIM, [self.key, self.publications_key, self.due_key], [now, next_check, BATCH])
        return [(self._read(task_id, entry), int(number)) for task_id, entry, number in claimed]

    def _read(self, task_id: str, text: str) -> Entry | None:
        """The entry, or None if it cannot be read, which is logged."""
        try:
            entry = Entry(**loads(text))
            if entry.id != task_id:
                raise ValueError(f"its id is {entry.id}")
        except Exception:
            logger.exception("outbox: %s of %s cannot be read and stays: %.300s", task_id, self.key, text)
            return None
        return entry

    def _publish(self, lost: list[tuple[Entry, int]], next_check: float, publish: Publish) -> int:
        """Publish those for which it is still needed; returns how many. Raises PUBLISH_ERRORS."""
        calls = [(self._keys(entry.id)[1:3], [entry.id, number, next_check]) for entry, number in lost]
        numbers = map(int, self._run_all(ADVANCE, calls))
        needed = [(entry, number) for (entry, _), number in zip(lost, numbers, strict=True) if number]
        if not needed:
            return 0
        errors, again = publish(needed), self._config.republish_after
        for entry, _ in needed:
            if error := errors.get(entry.id):
                logger.error(
                    "%s[%s] cannot be published; retried every %g s", entry.name, entry.id, again, exc_info=error
                )
        done = [(replace(entry, published=time.time()), number) for entry, number in needed if entry.id not in errors]
        self._run_all(
            REPLACE, [(self._keys(entry.id), [entry.id, dumps(vars(entry)), number, ""]) for entry, number in done]
        )
        for entry, _ in needed:
            if entry.published and entry.id not in errors:
                age = time.time() - entry.published
                outbox_republished.send(sender=self._sender, task=entry.name, queue=entry.queue, age=age)
                logger.warning("%s[%s] published again after %.0f s", entry.name, entry.id, age)
        return len(done)


class BrokerView:
    """Finds in the broker the messages of entries that have not ended."""

    def __init__(
        self,
        client: Any,
        lists_of: Callable[[Entry], list[str]],
        delayed_of: Callable[[Entry], list[str]],
        unacked_key: str,
        patience: float,
    ) -> None:
        """`client`: its replies are bytes; `lists_of` returns the Redis lists that an entry's message went to,
        `delayed_of` the sorted sets in which it waits for its ETA (atomic transport); `patience`: s that a publish may
        have taken."""
        self._client, self._lists_of, self._delayed_of = client, lists_of, delayed_of
        self._unacked_key, self._patience = unacked_key, patience

    def not_lost(self, entries: Sequence[Entry]) -> set[str]:
        """Ids of the entries whose message waits in a queue or is held by a worker, as far as known.

        A message counts as waiting if the next message of its list is not newer, which is cheap to check; also if that
        one has no publish time or was redelivered. Any other is searched for among the delayed messages, in the whole
        list, where it may have been requeued, and among the messages that workers hold. Raises RedisError.
        """
        lists = {entry.id: self._lists_of(entry) for entry in entries}
        heads = self._heads({name for names in lists.values() for name in names})
        gone = {
            entry.id
            for entry in entries
            if all(_is_newer(heads[name], entry.published + self._patience) for name in lists[entry.id])
        }
        here = lists.keys() - gone
        for key, eta in self._etas(entry for entry in entries if entry.id in gone).items():
            here |= self._named(self._delayed(key, until=eta + self._patience), gone - here)
        for name in {name for task_id in gone for name in lists[task_id] if heads[name] is not None}:
            here |= self._named(self._waiting(name), gone - here)
        if gone - here:
            here |= self._named(self._held(), gone - here)
        return here

    def _etas(self, entries: Iterable[Entry]) -> dict[str, float]:
        """The latest ETA of these entries in each sorted set of delayed messages."""
        etas: dict[str, float] = {}
        for entry in entries:
            if eta := eta_of(entry.headers):
                for key in self._delayed_of(entry):
                    etas[key] = max(eta, etas.get(key, 0))
        return etas

    def _delayed(self, key: str, until: float) -> Iterator[bytes]:
        """The delayed messages that are due by then, the latest first, so that it skips none if others become due.
        Entries are checked long after their ETA, so there are few, unless all workers of the queue are down."""
        first = 0
        while found := self._client.zrange(key, until, "-inf", desc=True, byscore=True, offset=first, num=SEARCHED):
            yield from found
            first += len(found)

    def _heads(self, lists: set[str]) -> Mapping[str, bytes | None]:
        names = sorted(lists)
        with self._client.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.lindex(name, -1)
            return dict(zip(names, pipe.execute(), strict=True))

    def _waiting(self, name: str) -> Iterator[bytes]:
        """The messages of a list, newest first: messages added or removed meanwhile do not make it skip others."""
        first = 0
        while found := self._client.lrange(name, first, first + SEARCHED - 1):
            yield from found
            first += len(found)

    def _held(self) -> Iterator[bytes]:
        """The messages that workers hold."""
        cursor = None
        while cursor != 0:
            cursor, found = self._client.hscan(self._unacked_key, cursor or 0, count=SEARCHED)
            yield from found.values()

    @staticmethod
    def _named(messages: Iterable[bytes], ids: set[str]) -> set[str]:
        """The ids that occur in the messages."""
        wanted = {dumps(task_id)[1:-1].encode(): task_id for task_id in ids}
        found: set[str] = set()
        for message in messages:
            found |= {wanted[written] for written in ID.findall(message) if written in wanted}
            if len(found) == len(wanted):
                break
        return found


def _is_newer(head: bytes | None, than: float) -> bool:
    """Whether the next message of a list was published after a time (epoch s); true for an empty list."""
    if head is None:
        return True
    try:
        headers = loads(head)["headers"]
        stamp = headers["published_at"]
        if headers.get("redelivered") or not isinstance(stamp, int | float):
            return False
        return bool(stamp > than)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False


def flattened(commands: Iterable[tuple[str, ...]]) -> Iterator[Any]:
    """Commands as a script gets them: of each its number of arguments, and these."""
    for command in commands:
        yield len(command)
        yield from command


def renumbered(commands: Iterable[tuple[str, ...]], number: int) -> list[tuple[str, ...]]:
    """Commands that publish a message, with the number of another publication in it."""
    return [
        (*command[:-1], _renumbered(command[-1], number)) if command[0] in ("lpush", "zadd") else command
        for command in commands
    ]


def _renumbered(argument: str, number: int) -> str:
    place, separator, text = argument.rpartition("\0")  # of a delayed message
    message = loads(text)
    message["headers"][PUBLICATION] = number
    return f"{place}{separator}{dumps(message)}"


@contextmanager
def running_task_stays() -> Iterator[None]:
    """A running task that could not publish stays in the outbox and runs again: otherwise the rest of its chain would
    be lost."""
    try:
        yield
    except PUBLISH_ERRORS:
        if current_task:
            current_task.request.outbox_stays = True
        raise
