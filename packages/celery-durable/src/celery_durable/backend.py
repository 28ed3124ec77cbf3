"""The result backend: Celery's for Redis, whose failures do not affect delivery.

`install` uses it instead of Celery's for redis:// and rediss://.
"""

import sys
import time
from functools import cached_property
from typing import Any

from celery import states
from celery.backends import redis
from celery.exceptions import WorkerLostError
from celery.utils.serialization import UnpickleableExceptionWrapper
from redis import RedisError

from celery_durable.clients import credentials
from celery_durable.errors import ResultTooLargeError
from celery_durable.logs import get_logger

logger = get_logger(__name__)

MEMORY_CHECK_INTERVAL = 5  # s between two checks of Redis' memory
OF_ARGUMENTS = 10  # arguments may take a tenth of the limit of a stored error

# Counts a member of a chord: Celery's script, in a function. The run that counts the last member claims the callback:
# for 6 s, and then for as long as publishing it may take. If its process is killed meanwhile, and the member runs again
# before the claim has expired, Celery finds the callback claimed, and nobody publishes it. Here "<claim> <member>" in
# the set of counted members says whose the claim is: the member's next run takes it over. If the earlier run is alive
# after all, it finds that the claim is no longer its own, and publishes nothing.
COUNT = """
local function count()
{}
end
local dkey, ckey, claim, member = KEYS[4], KEYS[6], ARGV[8], ARGV[1] .. ':' .. ARGV[4]
local held = redis.call('GET', ckey)
if held and redis.call('SISMEMBER', dkey, held .. ' ' .. member) == 1 then
    redis.call('DEL', ckey)
end
local counted = count()
if counted[4] == 1 then
    redis.call('SADD', dkey, claim .. ' ' .. member)
end
return counted
"""


class ResultConsumer(redis.ResultConsumer):
    """Celery's, which receives results."""

    def cancel_for(self, task_id: str) -> None:
        """Called when an AsyncResult is deleted, at any moment. Celery unsubscribes at once, and waits 20 s for a Redis
        that is unavailable; here the next operation unsubscribes."""
        self._pending_unsubscribe.add(self._get_key_for_task(task_id))


class RedisBackend(redis.RedisBackend):
    """Celery's, with limits on what is stored, and without effects on publishers."""

    ResultConsumer = ResultConsumer
    connparams: dict[str, Any]  # Celery's, for redis-py
    _checked_at, _has_room = 0.0, True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        login = {name: self.connparams.get(name) for name in ("username", "password")}
        if "credential_provider" not in self.connparams and (provider := credentials(self.durable.config, **login)):
            self.connparams = {name: value for name, value in self.connparams.items() if name not in login}
            self.connparams["credential_provider"] = provider

    @property
    def durable(self) -> Any:
        """The `Durable` of the backend's app."""
        return self.app.durable

    # --- Publishing ---

    def on_task_call(self, producer: Any, task_id: str) -> dict[str, Any]:
        """Publishing does not use the Redis of the results; a caller that waits for a result subscribes then.

        Celery subscribes here, and if that Redis is unavailable a publish hangs for 20 s and fails.
        """
        return {}

    def remove_pending_result(self, result: Any) -> Any:
        """Called when an AsyncResult is deleted. At the end of a program the Redis client may be deleted before it."""
        if sys.is_finalizing():
            return None
        if not any(result.id in pending for pending in self._pending_results):  # nobody waits: the most common case
            return result
        return super().remove_pending_result(result)

    # --- Chords ---

    def set_chord_size(self, group_id: str, chord_size: int) -> None:
        # First: members are published already, and a chord that is applied again still has the marks of its last end.
        super().set_chord_size(group_id, chord_size)
        try:
            self.durable.chords.begun(group_id)
        except RedisError as error:
            logger.warning("chord %s is not monitored: %s", group_id, error)

    @cached_property
    def _chord_part_return_script(self) -> Any:
        return self.client.register_script(COUNT.format(redis.CHORD_PART_RETURN_LUA))

    def on_chord_part_return(self, request: Any, state: str, result: Any, **kwargs: Any) -> Any:
        """A task that could not be counted for its chord must run again: else the chord would wait for ever."""
        try:
            return super().on_chord_part_return(request, state, result, **kwargs)
        except RedisError:
            request.outbox_stays = True
            raise

    # --- Bounds ---

    def mark_as_done(
        self, task_id: str, result: Any, request: Any = None, store_result: bool = True, *args: Any, **kwargs: Any
    ) -> Any:
        """Raises ResultTooLargeError: an EncodeError is the failure of the task, of its chain and of its chord."""
        limit = self.durable.config.max_result_bytes
        wanted = (store_result and not self._ignored(request)) or getattr(request, "chord", None)
        if wanted and (size := self._size(self.prepare_value(result))) > limit:
            raise ResultTooLargeError(
                f"a result of {size} bytes; max_result_bytes is {limit}. Store it elsewhere, and return its key."
            )
        return super().mark_as_done(task_id, result, request, store_result, *args, **kwargs)

    def mark_as_retry(
        self, task_id: str, exc: Any, traceback: Any = None, request: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """After a pool process was lost the worker's event loop calls this. The retry is published already, so it does
        not wait, as Celery would for minutes, for a Redis that is unavailable."""
        if not isinstance(exc, WorkerLostError):
            return super().mark_as_retry(task_id, exc, traceback, request, *args, **kwargs)
        try:
            return self._store_result(task_id, self.encode_result(exc, states.RETRY), states.RETRY, traceback, request)
        except (RedisError, OSError) as error:
            logger.warning("state RETRY of %s not stored: %s", task_id, error)

    def prepare_exception(self, exc: Any, serializer: Any = None) -> Any:
        """What is stored of an error, or passed to its chord: Celery's, with a long text truncated."""
        prepared, limit = super().prepare_exception(exc, serializer), self.durable.config.max_result_bytes // 4
        if self._size(prepared) <= limit:
            return prepared
        if isinstance(prepared, dict):
            return {**prepared, "exc_message": [_cut(_text(prepared), limit)]}
        return UnpickleableExceptionWrapper(type(exc).__module__, type(exc).__name__, [_cut(str(exc), limit)])

    def _store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **kwargs: Any
    ) -> Any:
        if not self._room():
            logger.error("result of %s not stored: Redis uses more than result_memory_share of its memory", task_id)
            return result
        return super()._store_result(task_id, result, state, traceback=traceback, request=request, **kwargs)

    def _get_result_meta(self, result: Any, state: str, traceback: Any, request: Any, **kwargs: Any) -> dict[str, Any]:
        meta: dict[str, Any] = super()._get_result_meta(result, state, traceback, request, **kwargs)
        config = self.durable.config
        limit = config.max_result_bytes
        if state in states.EXCEPTION_STATES and self._ignored(request):
            limit = min(limit, config.max_ignored_error_bytes)
        if self._size(meta) > limit:
            self._shrink(meta, limit)
        return meta

    def _ignored(self, request: Any) -> bool:
        """Whether the task's result is ignored."""
        ignored = getattr(request, "__dict__", {}).get("ignore_result")  # the class attribute is False if it is not set
        task = self.app.tasks.get(getattr(request, "task", None))
        return bool(getattr(task, "ignore_result", False) if ignored is None else ignored)

    def _shrink(self, meta: dict[str, Any], limit: int) -> None:
        """Truncate the repr of arguments, the middle of a traceback, and the text of an error."""
        for name in ("args", "kwargs"):
            if name in meta and self._size(meta[name]) > limit // OF_ARGUMENTS:
                meta[name] = _cut(repr(meta[name]), limit // OF_ARGUMENTS)
        if isinstance(meta.get("traceback"), str):
            meta["traceback"] = _cut(meta["traceback"], limit // 3, middle=True)
        error = meta["result"]
        if isinstance(error, dict) and "exc_message" in error and self._size(error) > limit // 4:
            meta["result"] = {**error, "exc_message": [_cut(_text(error), limit // 4)]}

    def _size(self, value: Any) -> int:
        try:
            return len(self.encode(value))
        except Exception:  # storing it will raise the same
            return 0

    def _room(self) -> bool:
        """Whether results may still be stored; checked every MEMORY_CHECK_INTERVAL seconds."""
        share, now = self.durable.config.result_memory_share, time.monotonic()
        if share < 1 and now - self._checked_at > MEMORY_CHECK_INTERVAL:
            self._checked_at = now
            try:
                info = self.client.info("memory")
                limit = int(info.get("maxmemory") or 0)
                self._has_room = not limit or int(info["used_memory"]) < share * limit
            except RedisError:  # storing the result will raise it
                self._has_room = True
        return self._has_room


def _text(error: dict[str, Any]) -> str:
    """The text of an error as stored by Celery."""
    message = error["exc_message"]
    return str(message[0]) if isinstance(message, list | tuple) and len(message) == 1 else str(message)


def _cut(text: str, size: int, middle: bool = False) -> str:
    """A text truncated to a size in bytes: its start or its two ends, with "…" at the cut."""
    data = text.encode(errors="backslashreplace")
    if len(data) <= size:
        return text
    parts = (data[: size // 2], data[-(size // 2) :]) if middle else (data[:size], b"")
    start, end = (part.decode(errors="ignore") for part in parts)
    return f"{start} …{end}"
