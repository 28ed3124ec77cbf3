"""The outbox: a unit of work that must happen is written down first, then published, and again until it has ended.

A task with `outbox = True` is such a unit, however it is called. Its message goes to the outbox in redis-results in one
atomic write, then to the broker. A publish that fails, hangs, or whose message is lost later (a broker that crashed or
was emptied, a worker killed between pop and bookkeeping) is repeated with the same task id by `republish`, which beat
sends. A unit ends when its task succeeds, fails for good, is revoked, or becomes a dead letter. It may run twice, so
its effect goes with delivery.once.

    outbox:units        hash: task id -> JSON, see `Unit`
    outbox:due          sorted set: task id by when to look at it next (epoch s)
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from celery import Task, current_task, signals, states
from kombu.exceptions import OperationalError
from kombu.utils.json import dumps, loads
from redis import RedisError

import timing
from metrics.delivery import OUTBOX_REPUBLISHED
from metrics.publishing import PUBLISH_FAILURES
from settings import PRIORITIES, broker_client, priority_lists, results_client

logger = logging.getLogger(__name__)

UNITS, DUE = "outbox:units", "outbox:due"

# Publishing failed, or nobody knows: the message may be in its queue all the same.
PUBLISH_ERRORS = (OperationalError, RedisError, OSError)

BATCH = 100  # units a look
TIME_BUDGET = 5  # s that one call of `republish` goes on

# The units that are due, each put off so that no other call takes it.
# KEYS: units, due. ARGV: now, when to look again, how many at most.
CLAIM = """
local claimed = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', ARGV[1], 'LIMIT', 0, ARGV[3])) do
    local unit = redis.call('HGET', KEYS[1], id)
    if unit then
        redis.call('ZADD', KEYS[2], ARGV[2], id)
        claimed[#claimed + 1] = unit
    else
        redis.call('ZREM', KEYS[2], id)
    end
end
return claimed
"""

# Replaces a unit that has not ended. KEYS: units. ARGV: id, unit.
REPLACE = "if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) end"


@dataclass(frozen=True)
class Unit:
    """A unit of work: all that publishing it takes, and when it was published last (epoch s)."""

    name: str
    queue: str
    headers: dict[str, Any]
    properties: dict[str, Any]
    body: Any
    options: dict[str, Any]
    published: float = 0.0  # 0: not yet, as far as anybody knows

    @property
    def id(self) -> str:
        """The task's id."""
        return str(self.headers["id"])

    @property
    def list_name(self) -> str:
        """The Redis list that its message waits in."""
        priority = self.options.get("priority", 0) or 0
        return priority_lists(self.queue)[max(0, min(int(priority), PRIORITIES - 1))]

    def next_look(self) -> float:
        """When it should have ended, if nothing went wrong; at once where it is not published."""
        return max(self.published, epoch(self.headers.get("eta"))) + timing.OUTBOX_BOUND if self.published else 0.0

    def write(self) -> None:
        """Write it down, in place of an earlier message of the same task (a retry). Raises RedisError."""
        with results_client().pipeline(transaction=True) as pipe:
            pipe.hset(UNITS, self.id, dumps(vars(self)))
            pipe.zadd(DUE, {self.id: self.next_look()})
            pipe.execute()


def epoch(eta: str | None) -> float:
    """A message's ETA in epoch seconds; 0 when it has none."""
    return datetime.fromisoformat(eta).timestamp() if eta else 0.0


def wait_until_on_disk() -> None:
    """Wait until what was written to the outbox outlives a loss of power: up to a second (AOF everysec).

    For whoever must not promise before: after a unit, or after a batch of them. Raises TimeoutError.
    """
    timeout = timing.PUBLISH_SOCKET_TIMEOUT - 1
    with results_client().pipeline(transaction=False) as pipe:
        pipe.set("outbox:barrier", "1")  # WAITAOF waits for its own connection's writes, and these come in order
        pipe.execute_command("WAITAOF", 1, 0, timeout * 1000)
        _, (written, _) = pipe.execute()
    if not written:
        raise TimeoutError(f"redis-results has not written to its disk for {timeout} s")


# --- The life of a unit ---


@signals.task_prerun.connect
def started(task: Task, task_id: str, **_: Any) -> None:
    """Its message was not lost: give it time to end."""
    if getattr(task, "outbox", False) and not task.request.is_eager:
        try:
            results_client().zadd(DUE, {task_id: time.time() + timing.OUTBOX_BOUND}, xx=True)
        except RedisError as error:
            logger.warning("outbox: start of %s not noted: %s", task_id, error)


@signals.task_postrun.connect
def finished(task: Task, task_id: str, state: str | None, **_: Any) -> None:
    """It succeeded, failed for good, or has nothing more to do."""
    over = state in (states.SUCCESS, states.FAILURE, states.IGNORED)
    if over and getattr(task, "outbox", False) and not task.request.get("unit_goes_on"):
        ended(task_id)


def goes_on() -> None:
    """The unit that this process runs does not end with its task, if one runs.

    Its next message is written under the same id (a retry, `replace`), or what it had to publish could not be: the rest
    of a chain would be lost with it, so it runs again.
    """
    if current_task:
        current_task.request.unit_goes_on = True


def ended(task_id: str) -> None:
    """A task has ended; what is not in the outbox is left alone. Without Redis it stays there, and runs once more."""
    if not task_id:
        return
    try:
        with results_client().pipeline(transaction=True) as pipe:
            pipe.hdel(UNITS, task_id)
            pipe.zrem(DUE, task_id)
            pipe.execute()
    except RedisError as error:
        logger.warning("outbox: end of %s not noted: %s", task_id, error)


# --- The reconciler ---


def republish(publish: Callable[[Unit], None]) -> dict[str, int]:
    """Publish again what has not ended and does not wait in its queue. Bounded in time and in what it reads.

    Returns {"published", "waiting"}: how many were published, and how many wait in a queue that has not come to them.
    A unit that cannot be published is logged, and stands in nobody's way. Raises PUBLISH_ERRORS while the broker is
    away; whatever was not published then is due at once.
    """
    results, deadline = results_client(), time.monotonic() + TIME_BUDGET
    claim, replace = results.register_script(CLAIM), results.register_script(REPLACE)
    published = waiting = 0
    while time.monotonic() < deadline:
        now = time.time()
        claimed = claim([UNITS, DUE], [now, now + timing.OUTBOX_BOUND, BATCH])
        units = [unit for unit in map(_read, claimed) if unit]
        left = {unit.id: now for unit in units}
        try:
            heads = _heads({unit.list_name for unit in units})
            for unit in units:
                head = heads[unit.list_name]
                if head is not None and head <= unit.published + timing.PUBLISH_SOCKET_TIMEOUT:
                    left[unit.id] = now + timing.OUTBOX_RECHECK
                    waiting += 1
                    continue
                if _publish(unit, publish):
                    replace([UNITS], [unit.id, dumps({**vars(unit), "published": time.time()})])
                    published += 1
                del left[unit.id]
        finally:
            if left:
                results.zadd(DUE, left, xx=True)
        if len(claimed) < BATCH:
            break
    return {"published": published, "waiting": waiting}


def _publish(unit: Unit, publish: Callable[[Unit], None]) -> bool:
    """Whether it could be. Raises PUBLISH_ERRORS."""
    try:
        publish(unit)
    except PUBLISH_ERRORS:
        raise
    except Exception:
        PUBLISH_FAILURES.labels(unit.name).inc()
        logger.exception("%s[%s] cannot be published; it is tried every %d s", unit.name, unit.id, timing.OUTBOX_BOUND)
        return False
    if unit.published:
        OUTBOX_REPUBLISHED.labels(unit.name, unit.queue).inc()
        logger.warning("%s[%s] published again after %.0f s", unit.name, unit.id, time.time() - unit.published)
    return True


def _read(entry: str) -> Unit | None:
    """A unit as it was written down, or None for what is none, which is logged."""
    try:
        unit = Unit(**loads(entry))
        _ = unit.id, unit.list_name
    except Exception:
        logger.exception("outbox: an entry that is no unit stays in %s: %.300s", UNITS, entry)
        return None
    return unit


def _heads(lists: set[str]) -> dict[str, float | None]:
    """When the message that is next in each list was published; None where none waits, or nobody knows."""
    names = sorted(lists)
    with broker_client().pipeline(transaction=False) as pipe:
        for name in names:
            pipe.lindex(name, -1)
        return {name: _published_at(head) for name, head in zip(names, pipe.execute(), strict=True)}


def _published_at(message: str | None) -> float | None:
    try:
        stamp = loads(message)["headers"]["published_at"] if message else None
    except (ValueError, TypeError, KeyError):
        return None
    return stamp if isinstance(stamp, int | float) else None
