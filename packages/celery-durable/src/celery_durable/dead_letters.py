"""Dead letters: messages that cannot be run, kept in a stream of the broker instead of being discarded.

As in AMQP, a message that is rejected without requeue becomes a dead letter. `python -m celery_durable dlq` lists dead
letters, shows one, requeues them, or drops them.

    <key_prefix>dead-letters         stream; the entry ids contain the time. Fields of an entry:
        reason          one of `Reason`
        error           the error text
        queue           the queue it came from
        task, id        of the task, if known
        payload         the message as received, byte for byte
        size            of the message in bytes; larger than `payload` if only its start was kept
    <key_prefix>dead-letters:stats   hash: `bytes`, the total size; `overflowed`, how many were removed at the limits

The limits are Config.max_dead_letters and Config.max_dead_letter_bytes.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from celery_durable.config import Config
from celery_durable.logs import get_logger
from celery_durable.lua import Script
from celery_durable.signals import dead_letter_overflowed, message_dead_lettered

logger = get_logger(__name__)

MAX_ERROR = 1000  # characters
MAX_NAME = 255  # characters of a task's name, its id, a queue
MAX_DIGITS = 20  # of a size
START = 65_536  # bytes kept of a message that is larger than max_dead_letter_bytes
PAGE_BYTES = 8 << 20  # the most that one round trip reads, plus one entry

# Adds a dead letter, and removes the oldest while a limit is exceeded. With a delivery tag the message is removed from
# the unacknowledged messages in the same step; if it has returned to its queue meanwhile nothing is added. allow-oom:
# dead-lettering must work on a full broker; the memory it takes is limited. KEYS: stream, stats, hash and index of
# unacknowledged messages. ARGV: max entries, max bytes, delivery tag or "", bytes of the payload, then fields and
# values. Returns nil, or reason, task and id of each removed one.
ADD = Script("""#!lua flags=allow-oom
local tag = ARGV[3]
if tag ~= '' then
    if redis.call('HDEL', KEYS[3], tag) == 0 then
        return nil
    end
    redis.call('ZREM', KEYS[4], tag)
end
redis.call('XADD', KEYS[1], '*', unpack(ARGV, 5))
local total = redis.call('HINCRBY', KEYS[2], 'bytes', ARGV[4])
local count = redis.call('XLEN', KEYS[1])
if count == 1 then
    redis.call('HSET', KEYS[2], 'bytes', ARGV[4])
    total = tonumber(ARGV[4])
end
local removed = {}
while count > tonumber(ARGV[1]) or (total > tonumber(ARGV[2]) and count > 1) do
    local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
    local entry = {}
    for i = 1, #oldest[2], 2 do
        entry[oldest[2][i]] = oldest[2][i + 1]
    end
    redis.call('XDEL', KEYS[1], oldest[1])
    count = count - 1
    total = redis.call('HINCRBY', KEYS[2], 'bytes', 0 - #(entry.payload or ''))
    redis.call('HINCRBY', KEYS[2], 'overflowed', 1)
    removed[#removed + 1] = {entry.reason or '', entry.task or '', entry.id or ''}
end
return removed
""")

# Removes an entry if it exists, and appends a message, if given, to a list. KEYS: stream, stats, list. ARGV: id of the
# entry, bytes of its payload, message or "". Returns 1 if it existed.
TAKE = Script("""
if redis.call('XDEL', KEYS[1], ARGV[1]) == 0 then
    return 0
end
redis.call('HINCRBY', KEYS[2], 'bytes', 0 - tonumber(ARGV[2]))
if ARGV[3] ~= '' then
    redis.call('LPUSH', KEYS[3], ARGV[3])
end
return 1
""")


# Entries between two ids, up to a number of bytes: with COUNT the size of an XRANGE reply would be unlimited. KEYS:
# stream. ARGV: first, last, bytes.
READ = Script("""
local found, size, first = {}, 0, ARGV[1]
while size < tonumber(ARGV[3]) do
    local entry = redis.call('XRANGE', KEYS[1], first, ARGV[2], 'COUNT', 1)[1]
    if not entry then
        break
    end
    for _, text in ipairs(entry[2]) do
        size = size + #text
    end
    found[#found + 1] = entry
    first = '(' .. entry[1]
end
return found
""")


class Reason(StrEnum):
    """Why a message is a dead letter."""

    MALFORMED = "malformed"
    TOO_LARGE = "larger than max_message_bytes"
    DELIVERIES = "delivered too often"
    UNKNOWN_TASK = "unknown task"
    REJECTED = "rejected by its task"
    RETRIES_EXHAUSTED = "retries exhausted"
    TIME_LIMIT = "hard time limit"
    WORKER_LOST = "killed its process"


# With these reasons the message cannot be trusted: its task id may belong to another task.
UNREADABLE = (Reason.MALFORMED, Reason.TOO_LARGE)


@dataclass(frozen=True, kw_only=True)
class Letter:
    """A dead letter."""

    reason: str
    error: str
    queue: str
    task: str
    task_id: str
    payload: bytes
    size: int  # of the whole payload
    id: str = ""  # of its entry in the stream

    @property
    def time(self) -> datetime:
        """When it became a dead letter."""
        return datetime.fromtimestamp(int(self.id.partition("-")[0]) / 1000, UTC)

    @property
    def whole(self) -> bool:
        """Whether all of the payload was kept."""
        return len(self.payload) == self.size

    def fields(self) -> list[str | bytes]:
        """Fields and values of its entry, as XADD takes them."""
        texts = {"reason": self.reason, "error": self.error, "queue": self.queue, "task": self.task, "id": self.task_id}
        return [*(part for pair in texts.items() for part in pair), "size", str(self.size), "payload", self.payload]


def letter(reason: Reason, error: str, queue: str, payload: bytes, max_bytes: int) -> Letter:
    """A dead letter of a message with any content; of one larger than `max_bytes` only the start is kept."""
    headers = headers_of(payload)
    return Letter(
        reason=reason.value,
        error=_text(error, MAX_ERROR),
        queue=_text(queue, MAX_NAME),
        task=_text(headers.get("task") or "", MAX_NAME),
        task_id=_text(headers.get("id") or "", MAX_NAME),
        payload=payload if len(payload) <= max_bytes else payload[:START],
        size=len(payload),
    )


def headers_of(payload: bytes) -> dict[str, Any]:
    """The headers of a message; empty if it has none that can be read."""
    try:
        headers = json.loads(payload)["headers"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return {}
    return headers if isinstance(headers, dict) else {}


def _text(value: object, longest: int) -> str:
    """Text that can be encoded for Redis: JSON can hold half of a surrogate pair."""
    return str(value)[:longest].encode(errors="backslashreplace").decode()


class DeadLetters:
    """The stream of one broker."""

    def __init__(self, config: Config, key: str) -> None:
        """`key`: of the stream, with all prefixes."""
        self._config = config
        self.key, self.stats_key = key, f"{key}:stats"

    def add(self, client: Any, new: Letter, app: Any, unacked: tuple[str, str, str] = ("", "", "")) -> bool:
        """Add a dead letter, and send `message_dead_lettered`. `client` prefixes no keys.

        `unacked`: delivery tag, and the keys of the hash and the index that it is removed from. Returns whether it was
        still in them. Raises RedisError.
        """
        tag, *unacked_keys = unacked
        limits = [self._config.max_dead_letters, self._config.max_dead_letter_bytes]
        removed = ADD(
            client,
            [self.key, self.stats_key, *(key or self.key for key in unacked_keys)],
            [*limits, tag, len(new.payload), *new.fields()],
        )
        if removed is None:
            return False
        logger.error("dead letter of queue %s: %s; %s[%s] %s", new.queue, new.reason, new.task, new.task_id, new.error)
        message_dead_lettered.send(sender=app, letter=new)
        for entry in removed:
            reason, task, task_id = (
                part.decode(errors="replace") if isinstance(part, bytes) else part for part in entry
            )
            logger.error(
                "dead letters: too many or too large, the oldest was removed: %s; %s[%s]", reason, task, task_id
            )
            dead_letter_overflowed.send(sender=app, reason=reason, task=task, task_id=task_id)
        return True

    def take(self, client: Any, old: Letter, list_name: str = "", message: bytes = b"") -> bool:
        """Remove a dead letter and append a message, if given, to a list in one step. False if it no longer exists."""
        keys = [self.key, self.stats_key, list_name or self.key]
        return bool(TAKE(client, keys, [old.id, len(old.payload), message]))

    def read(self, client: Any, first: str = "-", last: str = "+") -> Iterator[Letter]:
        """All between two ids, oldest first. The replies of `client` are bytes."""
        while entries := READ(client, [self.key], [first, last, PAGE_BYTES]):
            for entry_id, texts in entries:
                yield _letter_of(entry_id, dict(zip(texts[::2], texts[1::2], strict=True)))
            first = f"({entries[-1][0].decode()}"

    def count(self, client: Any) -> tuple[int, int, int]:
        """How many there are, their bytes, and how many were removed because of the limits."""
        with client.pipeline(transaction=False) as pipe:
            pipe.xlen(self.key)
            pipe.hmget(self.stats_key, "bytes", "overflowed")
            length, (size, overflowed) = pipe.execute()
        return length, int(size or 0), int(overflowed or 0)


def _letter_of(entry_id: bytes, fields: dict[bytes, bytes]) -> Letter:
    """A dead letter from any fields: the entry may have been written by another program."""
    reason, error, queue, task, task_id, size = (
        fields.get(name, b"").decode(errors="backslashreplace")
        for name in (b"reason", b"error", b"queue", b"task", b"id", b"size")
    )
    payload = fields.get(b"payload", b"")
    return Letter(
        id=entry_id.decode(),
        reason=reason,
        error=error,
        queue=queue,
        task=task,
        task_id=task_id,
        payload=payload,
        size=int(size) if size.isdecimal() and len(size) < MAX_DIGITS else len(payload),
    )
