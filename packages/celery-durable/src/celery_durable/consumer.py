"""The worker's consumer: no message can crash the worker, and no other worker runs the messages that it holds.

Celery rejects a message that it cannot read, or crashes on it; here each such message becomes a dead letter with a
reason. An unknown task may belong to a deployment in progress: its message returns to the queue for a while first. Held
messages are renewed, so that no other worker runs them, however long they wait.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Container
from contextlib import suppress
from functools import partial
from typing import Any

from celery.concurrency import prefork, solo, thread
from celery.worker import consumer, state
from celery.worker.consumer.consumer import INVALID_TASK_ERROR, UNKNOWN_FORMAT, UNKNOWN_TASK_ERROR
from celery.worker.consumer.consumer import logger as celery_logger
from kombu.common import QoS
from kombu.exceptions import OperationalError
from redis import RedisError

from celery_durable.atomic.delays import AT_ONCE
from celery_durable.atomic.leases import TAG_PREFIX
from celery_durable.dead_letters import Reason
from celery_durable.logs import get_logger
from celery_durable.messages import check_body, check_delivery, check_headers
from celery_durable.pools import begun, keeping, report_errors
from celery_durable.times import eta_of

logger = get_logger(__name__)

# Errors of the broker, not of a message. kombu's own list contains KeyError, which a malformed message can raise: the
# worker would reconnect and get the same message again, for ever.
CONNECTION_ERRORS = (OSError, RedisError, OperationalError)

# Celery logs the whole message with these; how many arguments of the text are no part of the message.
QUOTING = {UNKNOWN_FORMAT: 0, INVALID_TASK_ERROR: 1, UNKNOWN_TASK_ERROR: 1}
NOT_LOGGED = "(not logged: it may be secret)"

PATIENCE = "unknown_for"  # header: s that workers have delayed a message of an unknown task


def _hide_contents(record: logging.LogRecord) -> bool:
    """A filter of Celery's logger: the arguments of a task may be secret."""
    if isinstance(record.args, tuple) and record.msg in QUOTING:
        shown = QUOTING[record.msg]
        record.args = (*record.args[:shown], *[NOT_LOGGED] * (len(record.args) - shown))
    return True


celery_logger.addFilter(_hide_contents)


def check_message(message: Any, known: Container[str]) -> None:
    """Raises TypeError if a part has another type than Celery assumes, and any error of decoding. `known`: the tasks of
    the worker; the body of another task is not read."""
    check_delivery(message.delivery_info)
    if "task" in message.headers:
        check_headers(message.headers)
        if message.headers["task"] in known:
            check_body(message.payload)
    elif isinstance(message.payload, dict) and "task" in message.payload:
        check_body(message.payload)


class PrefetchCount(QoS):
    """kombu's prefetch count, with a limit that does not lower the count over time.

    Each message that waits for its ETA or rate limit raises the count, and lowers it when it runs. kombu ignores a
    raise beyond the limit but still applies the matching decrease, until one slot is left. Here both are ignored. The
    limit is never below the pool's own slots.
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


FORGET_BEYOND = 100  # messages
EVENTS_WITHIN, EVENTS = 0.1, 1000  # s, and at most so many in one message


class Consumer(consumer.Consumer):
    """Celery's consumer, which handles every message."""

    received = 0  # messages, for the watchdog
    _renewal: Any = None  # a timer entry
    _events_due = False
    _stopped = False

    def __init__(self, on_task_request: Callable[[Any], Any], *args: Any, **kwargs: Any) -> None:
        self._give_to_pool = on_task_request
        self._taken: dict[str, tuple[Any, Any]] = {}  # by delivery tag: a message, and its request once the pool has it
        self._forget_beyond = FORGET_BEYOND
        self._acknowledgements: deque[Callable[[], None]] = deque()  # of threads of the pool, for the event loop
        self._rate_limited: set[Any] = set()  # requests that wait for their rate limit
        super().__init__(self._hand_over, *args, **kwargs)
        report_errors(self.pool)

    @property
    def durable(self) -> Any:
        """The `Durable` of the worker's app."""
        return self.app.durable

    @property
    def qos(self) -> Any:
        """The prefetch count; Celery creates one for each connection."""
        return self._qos

    @qos.setter
    def qos(self, made: Any) -> None:
        self._qos = made and PrefetchCount(made.callback, made.value, made.max_prefetch)

    # --- Events ---

    def on_send_event_buffered(self) -> None:
        """Publish the events of tasks within 0.1 s, many in one message. Celery does so in each turn of its event loop,
        mostly one event at a time, and waits for Redis: half of the time of a worker that runs short tasks.

        A solo worker publishes as Celery does: its loop may be busy with a task when a timer is due.
        """
        if isinstance(self.pool, solo.TaskPool):
            super().on_send_event_buffered()
        elif not self._events_due:
            self._events_due = True
            # A thread of the pool must not add a timer itself: the event loop would not notice it.
            self.call_soon(self.timer.call_after, EVENTS_WITHIN, self._publish_events)

    def connect(self) -> Any:
        """Threads have sent events meanwhile. What the old dispatcher cannot publish now, the next one takes over."""
        connection = super().connect()
        self._flush_events()
        return connection

    def _publish_events(self) -> None:
        self._events_due = False
        self._flush_events()

    def shutdown(self) -> None:
        """The events of tasks that ended while the worker was stopping are still to be published."""
        self._flush_events()
        super().shutdown()

    # --- A connection ---

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
        """Called for each connection, before the first message."""
        self._events_due = False  # the entry of a connection that failed early may have been cancelled
        if self.event_dispatcher and not isinstance(self.pool, solo.TaskPool):
            self.event_dispatcher.buffer_limit = EVENTS  # Celery's is 24
        self.durable.revocations.load()
        if self.durable.config.renewal and not self.durable.atomic:
            if self._renewal:  # of the previous connection
                self._renewal.cancel()
            self._renewal = self.timer.call_repeatedly(self.durable.config.renew_interval, self._renew)
        handle = super().create_task_handler(*args, **kwargs)
        if delays := self.durable.atomic:  # of publishers with kombu's transport, too
            self.connection.transport.also_held = lambda: list(self.held())

        def on_task_received(message: Any) -> Any:
            self.received += 1
            if len(self._taken) >= self._forget_beyond:
                self._forget()
            self._taken[message.delivery_tag] = message, None
            try:
                check_message(message, self.strategies)
                booked = delays and message.delivery_tag.startswith(TAG_PREFIX)  # a broadcast is not
                due = eta_of(message.headers) if booked else 0
                if due > time.time() + AT_ONCE and message.channel.delays.park(message, due):
                    self._taken.pop(message.delivery_tag)
                    return None
                return handle(message)
            except CONNECTION_ERRORS:
                raise
            except Exception as error:
                _, request = self._taken.pop(message.delivery_tag, (None, None))
                if message.acknowledged:
                    logger.exception("error after message %s was acknowledged or rejected", message.delivery_tag)
                elif delays and request is not None and request.time_start:  # in the solo pool; see `DurableRequest`
                    logger.exception("error at the end of task %s; it is redelivered", request.id)
                else:
                    self._dead_letter(message, Reason.MALFORMED, error)

        return on_task_received

    def call_soon_ack(self, p: Any, *args: Any, **kwargs: Any) -> Any:
        """Celery waits for the next turn of the event loop. With the atomic transport an acknowledgement is sent with
        the next fetch anyway, and the next message that was read ahead needs its room now. Not from the threads of a
        pool: there the event loop does it, until the worker stops."""
        if not self.durable.atomic:
            return super().call_soon_ack(p, *args, **kwargs)
        channel = self.task_consumer and self.task_consumer.channel  # None while it connects
        acknowledge = partial(self._acknowledge, channel, partial(p, *args, **kwargs))
        if isinstance(self.pool, thread.TaskPool):
            self._acknowledgements.append(acknowledge)
            if not self._stopped:
                return super().call_soon_ack(self._send_acknowledgements)
            self._send_acknowledgements()
            return p
        acknowledge()
        if channel and isinstance(self.pool, prefork.TaskPool):
            channel.deliver_soon()
        return p

    def _send_acknowledgements(self) -> None:
        with suppress(IndexError):  # another thread has taken the last one
            while self._acknowledgements:
                self._acknowledgements.popleft()()

    def _acknowledge(self, channel: Any, acknowledge: Callable[[], Any]) -> None:
        try:
            acknowledge()
        except CONNECTION_ERRORS as error:  # of a reject, such as that Redis refuses writes
            logger.warning("a message was neither acknowledged nor rejected, it is redelivered: %r", error)
            if channel:
                channel.fail(error)
        except Exception:
            logger.exception("a message was neither acknowledged nor rejected, it is redelivered")

    def cancel_active_requests(self) -> None:
        """At a cold stop. The tasks of solo and threads cannot be ended: the worker waits for them."""
        if isinstance(self.pool, prefork.TaskPool):
            super().cancel_active_requests()

    def stop(self) -> None:
        """Tasks may run for long after the event loop has ended."""
        given = [tag for tag, (_, request) in list(self._taken.items()) if request and request._apply_result]
        super().stop()
        self._stopped = True
        self._send_acknowledgements()
        if self.durable.atomic and self.task_consumer is not None:
            running = {*self._taken}  # see on_close()
            if isinstance(self.pool, thread.TaskPool):
                running.update(given)  # one of these may have ended meanwhile, and is not acknowledged yet
            self.task_consumer.channel.stop_taking(running)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """With leases the messages of running tasks stay with this worker: they are renewed and acknowledged over the
        next connection. Otherwise they would run a second time meanwhile."""
        if self.durable.atomic and self.task_consumer is not None:
            kept = {
                *self._begun(),
                *(request for _, request in self._taken.values() if request and request.acknowledged),
            }
            tags = [tag for tag, (_, request) in self._taken.items() if request in kept]
            self.task_consumer.channel.qos.let_go(tags)
        super().on_connection_error_after_connected(exc)

    def on_close(self) -> None:
        self._flush_events()  # the next connection takes over only what this one tried to publish
        with keeping(self.pool, self._begun()):
            super().on_close()
        self._rate_limited.clear()
        self._taken = {tag: taken for tag, taken in self._taken.items() if taken[1] in state.active_requests}

    def _begun(self) -> list[Any]:
        """The requests which the pool has begun; they count as running from here on."""
        requests = [request for _, request in list(self._taken.values()) if request is not None]
        state.active_requests.update(begun(self.pool, requests))
        return [request for request in requests if request in state.active_requests]

    # --- What is held ---

    def _hand_over(self, request: Any) -> Any:
        message = request.message
        self._taken[message.delivery_tag] = message, request
        return self._give_to_pool(request)

    def held(self) -> dict[str, Any]:
        """The unacknowledged messages of this worker by delivery tag: of tasks that run or wait for a slot, an ETA or a
        rate limit, and of unknown tasks."""
        return {
            tag: message
            for tag, (message, request) in list(self._taken.items())
            if not message.acknowledged and (request is None or request in state.reserved_requests)
        }

    def _forget(self) -> dict[str, Any]:
        """Free the memory of what is no longer held, about 10 kB each. Returns what is held."""
        held = self.held()
        self._taken = {tag: taken for tag, taken in self._taken.items() if tag in held}
        self._forget_beyond = 2 * len(held) + FORGET_BEYOND  # so that looking costs each message little
        return held

    def _renew(self) -> None:
        held = self._forget()
        if self.connection is None or self.task_consumer is None:
            return
        try:
            self.task_consumer.channel.qos.renew(list(held))
        except CONNECTION_ERRORS as error:  # the event loop notices it too, and reconnects
            logger.warning("held messages not renewed: %s", error)

    def _limit_task(self, request: Any, bucket: Any, tokens: int) -> Any:
        """A message that waits for its rate limit uses no prefetch slot: other messages of its queue can run."""
        self.qos.increment_eventually()
        self._rate_limited.add(request)
        return super()._limit_task(request, bucket, tokens)

    def _limit_post_eta(self, request: Any, bucket: Any, tokens: int) -> Any:
        """The message keeps the prefetch slot it got for its ETA, now for its rate limit."""
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
            message.reject()
        except CONNECTION_ERRORS as error:
            logger.warning("message %s was not dead-lettered; it is redelivered: %r", message.delivery_tag, error)
            self._fail(message, error)
        except Exception:  # otherwise the worker would crash on it again after a restart
            logger.exception("message %s was not dead-lettered; it is redelivered", message.delivery_tag)

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        if self.task_consumer is not None and message.channel is self.task_consumer.channel:
            self._dead_letter(message, Reason.MALFORMED, exc)
        else:  # a broadcast of remote control, which is in no queue
            logger.warning("remote control: refused, it cannot be read: %s", exc)

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        message.dead = (Reason.MALFORMED, f"{type(exc).__name__}: {exc}")
        super().on_invalid_task(body, message, exc)

    def on_unknown_message(self, body: Any, message: Any) -> None:
        message.dead = (Reason.MALFORMED, "it has no task name")
        super().on_unknown_message(body, message)

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        config = self.durable.config
        waited = message.headers.get(PATIENCE)
        waited = waited if isinstance(waited, int | float) else 0  # set by another program it may be anything
        if waited < config.unknown_task_patience:
            delay = config.unknown_task_delay
            logger.warning("unknown task %s: requeued in %g s; is a deployment in progress?", exc, delay)
            qos = self.qos  # a reconnect creates another
            qos.increment_eventually()  # meanwhile it uses no prefetch slot
            self.timer.call_after(delay, self._put_back, (qos, message, waited + delay))
        else:
            message.dead = (Reason.UNKNOWN_TASK, f"unknown to the workers for {config.unknown_task_patience:g} s")
            super().on_unknown_task(body, message, exc)

    def _put_back(self, qos: Any, message: Any, waited: float) -> None:
        qos.decrement_eventually()
        self._taken.pop(message.delivery_tag, None)
        if message.channel is None or message.channel.connection is None:
            return  # the connection was lost: the message is redelivered after the visibility timeout
        try:
            message.channel.put_back(message, **{PATIENCE: waited})
        except CONNECTION_ERRORS as error:
            logger.warning("unknown task not requeued; it is redelivered: %s", error)
            self._fail(message, error)

    def _fail(self, message: Any, error: Exception) -> None:
        if self.durable.atomic:  # otherwise it would be renewed for as long as the connection lasts
            message.channel.fail(error)
