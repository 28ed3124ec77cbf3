"""The worker's consumer: whatever a message is, the worker goes on, and what it holds stays its own.

Celery rejects what it cannot read, or falls over it; here each such message becomes a dead letter with its reason. A
task that no worker knows may belong to a deploy that is under way: its message goes back to the queue for a while
first. What the worker holds is renewed, so that nobody else runs it, however long it waits.
"""

import logging
from collections.abc import Callable
from typing import Any

from celery.worker import consumer, state
from kombu.common import QoS
from kombu.exceptions import OperationalError
from redis import RedisError

from celery_durable.dead_letters import Reason

logger = logging.getLogger(__name__)

# The broker's trouble, not the message's. kombu's own list has KeyError in it, which an odd message can raise: it would
# reconnect, get the same message again, and so on for ever.
CONNECTION_ERRORS = (OSError, RedisError, OperationalError)

PATIENCE = "unknown_for"  # header: s that workers have held back a message whose task they do not know

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
    "outbox_publication": (int, type(None)),
}


def check_message(message: Any) -> None:
    """Raises TypeError for what is of another kind than Celery takes for granted."""
    key = message.delivery_info.get("routing_key")
    if not isinstance(key, str):
        raise TypeError(f"routing_key: {key!r:.80}")
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


class PrefetchCount(QoS):
    """kombu's count of messages that may be held, with a limit that gives back what it took.

    Each waiting message adds a place and takes it away when it goes on. kombu forgets the places beyond the limit and
    takes them away all the same, until one is left. And the limit is not for the places of the pool.
    """

    _beyond = 0

    def __init__(self, callback: Any, initial_value: int, max_prefetch: int | None = None) -> None:
        limit = max_prefetch and max(max_prefetch, initial_value)
        super().__init__(callback, initial_value, limit)

    def increment_eventually(self, n: int = 1) -> int:
        with self._mutex:
            before = self.value
            after: int = super().increment_eventually(n)
            if before:
                self._beyond += max(n, 0) - (after - before)
            return after

    def decrement_eventually(self, n: int = 1) -> int:
        with self._mutex:
            forgotten = min(self._beyond, n)
            self._beyond -= forgotten
            result: int = super().decrement_eventually(n - forgotten)
            return result


class Consumer(consumer.Consumer):
    """Celery's consumer with an answer to each message."""

    received = 0  # messages; the watchdog looks at it
    _renewal: Any = None  # an entry of the timer

    def __init__(self, on_task_request: Callable[[Any], Any], *args: Any, **kwargs: Any) -> None:
        self._give_to_pool = on_task_request
        self._taken: dict[str, tuple[Any, Any]] = {}  # by delivery tag: a message, and its request once the pool has it
        self._rate_limited: set[Any] = set()  # requests that wait for their rate limit
        super().__init__(self._hand_over, *args, **kwargs)

    @property
    def durable(self) -> Any:
        """Of the worker's app."""
        return self.app.durable

    @property
    def qos(self) -> Any:
        """How many messages may be held; Celery makes one for each connection."""
        return self._qos

    @qos.setter
    def qos(self, made: Any) -> None:
        self._qos = made and PrefetchCount(made.callback, made.value, made.max_prefetch)

    # --- A connection ---

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
        """Called for each connection, before the first message comes."""
        self.durable.revocations.load()
        if self.durable.config.renewal:
            if self._renewal:  # that of an earlier connection
                self._renewal.cancel()
            self._renewal = self.timer.call_repeatedly(self.durable.config.renew_interval, self._renew)
        handle = super().create_task_handler(*args, **kwargs)

        def on_task_received(message: Any) -> Any:
            self.received += 1
            self._taken[message.delivery_tag] = message, None
            try:
                check_message(message)
                return handle(message)
            except CONNECTION_ERRORS:
                raise
            except Exception as error:
                self._taken.pop(message.delivery_tag, None)
                if message.acknowledged:
                    logger.exception("after message %s was settled", message.delivery_tag)
                else:
                    self._dead_letter(message, Reason.MALFORMED, error)

        return on_task_received

    def on_close(self) -> None:
        super().on_close()
        self._rate_limited.clear()
        self._taken = {tag: taken for tag, taken in self._taken.items() if taken[1] in state.active_requests}

    # --- What is held ---

    def _hand_over(self, request: Any) -> Any:
        message = request.message
        self._taken[message.delivery_tag] = message, request
        return self._give_to_pool(request)

    def held(self) -> dict[str, Any]:
        """The messages that this worker has and has not settled, by delivery tag: of tasks that run or wait for a slot,
        an ETA or a rate limit, and of unknown ones."""
        return {
            tag: message
            for tag, (message, request) in list(self._taken.items())
            if not message.acknowledged and (request is None or request in state.reserved_requests)
        }

    def _renew(self) -> None:
        held = self.held()
        self._taken = {tag: taken for tag, taken in self._taken.items() if tag in held}
        if self.connection is None or self.task_consumer is None:
            return
        try:
            self.task_consumer.channel.qos.renew(list(held))
        except CONNECTION_ERRORS as error:  # the loop finds out by itself, and reconnects
            logger.warning("held messages not renewed: %s", error)

    def _limit_task(self, request: Any, bucket: Any, tokens: int) -> Any:
        """A message that waits for its rate limit takes no place: others of its queue can go on."""
        self.qos.increment_eventually()
        self._rate_limited.add(request)
        return super()._limit_task(request, bucket, tokens)

    def _limit_post_eta(self, request: Any, bucket: Any, tokens: int) -> Any:
        """Its place as a message with an ETA is now that of one behind a rate limit."""
        self._rate_limited.add(request)
        bucket.add((request, tokens))
        return self._schedule_bucket_request(bucket)

    def _limit_move_to_pool(self, request: Any) -> None:
        if request in self._rate_limited:
            self._rate_limited.remove(request)
            self.qos.decrement_eventually()
        super()._limit_move_to_pool(request)

    # --- What cannot be run ---

    def _dead_letter(self, message: Any, reason: Reason, error: object) -> None:
        message.dead = (reason, f"{type(error).__name__}: {error}" if isinstance(error, Exception) else str(error))
        try:
            message.reject_log_error(logger, CONNECTION_ERRORS)
        except Exception:  # a worker that falls over it would fall over it again
            logger.exception("message %s did not become a dead letter; it comes back", message.delivery_tag)

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        self._dead_letter(message, Reason.MALFORMED, exc)

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        message.dead = (Reason.MALFORMED, f"{type(exc).__name__}: {exc}")
        super().on_invalid_task(body, message, exc)

    def on_unknown_message(self, body: Any, message: Any) -> None:
        message.dead = (Reason.MALFORMED, "names no task")
        super().on_unknown_message(body, message)

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        config = self.durable.config
        waited = message.headers.get(PATIENCE)
        waited = waited if isinstance(waited, int | float) else 0  # a stranger's may be anything
        if waited < config.unknown_task_patience:
            delay = config.unknown_task_delay
            logger.warning("unknown task %s: its message goes back in %g s; is a deploy under way?", exc, delay)
            qos = self.qos  # a reconnect brings another
            qos.increment_eventually()  # it takes nobody's place meanwhile
            self.timer.call_after(delay, self._put_back, (qos, message, waited + delay))
        else:
            message.dead = (Reason.UNKNOWN_TASK, f"no worker has known it for {config.unknown_task_patience:g} s")
            super().on_unknown_task(body, message, exc)

    def _put_back(self, qos: Any, message: Any, waited: float) -> None:
        qos.decrement_eventually()
        self._taken.pop(message.delivery_tag, None)
        if message.channel is None or message.channel.connection is None:
            return  # a lost connection: the visibility timeout gives it back
        try:
            message.channel.put_back(message, **{PATIENCE: waited})
        except CONNECTION_ERRORS as error:
            logger.warning("message of an unknown task not put back, the visibility timeout will: %s", error)
