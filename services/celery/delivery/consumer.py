"""The worker's consumer: whatever a message is, the worker goes on.

Selected by `worker_consumer` in settings.py. Celery rejects what it cannot read, or falls over it; here each such
message becomes a dead letter with its reason. A task that no worker knows may belong to a deploy that is under way: its
message goes back to the queue for a while first.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

from celery.worker import consumer
from kombu.exceptions import OperationalError
from redis import RedisError

import timing
from delivery.dead_letters import Reason

logger = logging.getLogger(__name__)

# The broker's trouble, not the message's. kombu's own list has KeyError in it, which an odd message can raise: it would
# reconnect, get the same message again, and so on for ever.
CONNECTION_ERRORS = (OSError, RedisError, OperationalError)


NUMBER = (int, float, type(None))
TEXT = (str, type(None))
# What Celery takes for granted, and falls over only later, in its pool or its timer.
HEADERS: dict[str, tuple[type, ...]] = {
    "task": (str,),
    "id": (str,),
    "root_id": TEXT,
    "parent_id": TEXT,
    "group": TEXT,
    "eta": TEXT,
    "expires": TEXT,
    "retries": (int, type(None)),
    "stamped_headers": (list, type(None)),
    "published_at": NUMBER,
    "redelivered_at": NUMBER,
}


def check_message(message: Any) -> None:
    """Raises TypeError for what is of another kind than Celery takes for granted."""
    queue = message.delivery_info.get("routing_key")
    if not isinstance(queue, str):
        raise TypeError(f"routing_key: {queue!r:.80}")
    check_headers(message.headers)


def check_headers(headers: Any) -> None:
    """Raises TypeError for a header that is of another kind than Celery takes for granted."""
    if "task" not in headers:
        return  # an old protocol, or none: Celery looks for it in the body
    for name, kinds in HEADERS.items():
        if not isinstance(headers.get(name), kinds):
            raise TypeError(f"header {name}: {headers.get(name)!r:.80}")
    limits = headers.get("timelimit") or (None, None)
    if not (isinstance(limits, list | tuple) and len(limits) == 2 and all(isinstance(each, NUMBER) for each in limits)):
        raise TypeError(f"header timelimit: {limits!r:.80}")


class Consumer(consumer.Consumer):
    """Celery's consumer with an answer to each message."""

    received = 0  # messages; the watchdog looks at it

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
        handle = super().create_task_handler(*args, **kwargs)

        def on_task_received(message: Any) -> Any:
            self.received += 1
            try:
                check_message(message)
                return handle(message)
            except CONNECTION_ERRORS:
                raise
            except Exception as error:
                if message.acknowledged:
                    logger.exception("after message %s was settled", message.delivery_tag)
                else:
                    self._bury(message, Reason.MALFORMED, error)

        return on_task_received

    def _bury(self, message: Any, reason: Reason, error: object) -> None:
        message.dead = (reason, f"{type(error).__name__}: {error}" if isinstance(error, Exception) else str(error))
        try:
            message.reject_log_error(logger, CONNECTION_ERRORS)
        except Exception:  # a worker that falls over it would fall over it again
            logger.exception("message %s was not buried; it comes back", message.delivery_tag)

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        self._bury(message, Reason.MALFORMED, exc)

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        message.dead = (Reason.MALFORMED, f"{type(exc).__name__}: {exc}")
        super().on_invalid_task(body, message, exc)

    def on_unknown_message(self, body: Any, message: Any) -> None:
        message.dead = (Reason.MALFORMED, "names no task")
        super().on_unknown_message(body, message)

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        now = time.time()
        since = message.headers.get("unknown_since", now)
        if isinstance(since, int | float) and now - since < timing.UNKNOWN_TASK_PATIENCE:
            logger.warning(
                "unknown task %s: its message goes back to the queue in %d s; is a deploy under way?",
                exc,
                timing.UNKNOWN_TASK_DELAY,
            )
            qos = self.qos  # a reconnect brings another
            qos.increment_eventually()  # it takes nobody's place meanwhile
            self.timer.call_after(timing.UNKNOWN_TASK_DELAY, self._put_back, (qos, message, since))
        else:
            message.dead = (Reason.UNKNOWN_TASK, f"no worker has known it for {timing.UNKNOWN_TASK_PATIENCE} s")
            super().on_unknown_task(body, message, exc)

    def _put_back(self, qos: Any, message: Any, since: float) -> None:
        qos.decrement_eventually()
        if message.channel is None or message.channel.connection is None:
            return  # a lost connection: the visibility timeout gives it back
        try:
            message.channel.put_back(message, unknown_since=since)
        except CONNECTION_ERRORS as error:
            logger.warning("message of an unknown task not put back, the visibility timeout will: %s", error)
