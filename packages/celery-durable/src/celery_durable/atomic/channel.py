"""The channel: takes messages atomically for consumers that acknowledge, and gives others back."""

import time
from collections import deque
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from queue import Empty
from threading import get_ident
from time import monotonic
from typing import Any

from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps, loads
from kombu.utils.uuid import uuid
from redis import ConnectionPool, Redis, RedisError

from celery_durable import transport
from celery_durable.atomic.ahead import WAITS, Ahead
from celery_durable.atomic.delays import Delays
from celery_durable.atomic.fetching import Fetched, Fetcher
from celery_durable.atomic.leases import TAG_PREFIX
from celery_durable.atomic.qos import QoS
from celery_durable.atomic.scripts import FETCH, GIVE_BACK
from celery_durable.dead_letters import Reason
from celery_durable.logs import get_logger
from celery_durable.signals import operation_fenced

logger = get_logger(__name__)

DELIVERING = 0.005  # s after which the event loop gets its turn: in a solo worker a delivery runs the task
ACKS_WAIT = 0.005  # s between two commands while messages that were read ahead are handed over
UNLIMITED = 100  # messages at a time if there is no prefetch count
LOOP_TURNS = 0.2  # s


class Channel(transport.Channel):
    """A channel takes messages with fetch.lua if a consumer acknowledges. For others (replies of remote control) it
    uses kombu's BRPOP: there, taking is acknowledging."""

    QoS = QoS

    def __init__(self, connection: Any, **options: Any) -> None:
        self.fetches = False
        self.broken = (OSError, RedisError)  # errors of the connection, and nothing that a message can raise
        self._name = uuid()
        self._tag_prefix = f"{TAG_PREFIX}{self._name}:"
        self._buffer: deque[Fetched] = deque()
        self._ahead = Ahead()
        self._fetched_at = 0.0
        self._delivering = self._stopped = False
        self._deliver_due = self._turn_due = False  # whether the event loop has been asked to
        self._failed: Exception | None = None  # to be raised in the next turn of the event loop
        self._pumped = 0.0  # when the event loop made its last turn
        self._consuming: dict[str, tuple[bool, Any]] = {}  # by queue: no_ack, and the consumer's callback
        super().__init__(connection, **options)
        config = self.durable.config
        self.books = self.prefixed(self.unacked_key), self.prefixed(self.unacked_index_key)
        self._max_bytes, self._max_deliveries = config.max_message_bytes, config.max_deliveries
        self.fetcher = Fetcher(self, self._name, self._tag_prefix)
        self.delays = Delays(self)
        self.handlers["FETCH"] = self.read_fetched

    # --- Names ---

    def key(self, name: str) -> str:
        """A key of the library."""
        return self.prefixed(f"{self.durable.config.key_prefix}{name}")

    def list_of(self, queue: str, payload: Any) -> str:
        """The Redis list in which a message waits."""
        try:
            priority = self._get_message_priority(payload, reverse=False)
        except (ValueError, TypeError, OverflowError):  # it may be anything
            priority = 0
        return self.prefixed(self._q_for_pri(queue, priority))

    # --- Taking ---

    def basic_consume(self, queue: str, no_ack: bool, callback: Any, consumer_tag: str, **kwargs: Any) -> Any:
        if not no_ack and not self.fetches and self._in_poll:  # the reply of an earlier BRPOP must not be lost
            with suppress(Empty):
                self._brpop_read()
        consumed = super().basic_consume(queue, no_ack, callback, consumer_tag, **kwargs)
        self._consuming[queue] = no_ack, callback
        if not no_ack and queue not in self._fanout_queues:
            self.fetches = True
            self.connection.hold_leases(self)
        self.fetcher.consumers_changed()
        return consumed

    def _basic_cancel(self, consumer_tag: str) -> Any:
        queue = self._tag_to_queue.get(consumer_tag)
        cancelled = super()._basic_cancel(consumer_tag)
        if queue is not None and queue not in self._active_queues:
            self._consuming.pop(queue, None)
        self.fetcher.consumers_changed()
        return cancelled

    def queues_in_turn(self) -> list[str]:
        """The consumed queues, the one whose turn it is first."""
        return list(self._queue_cycle.consume(len(self.active_queues)))

    @property
    def has_unread(self) -> bool:
        """Whether messages that were taken wait to be handed over."""
        return bool(self._buffer)

    def room(self) -> int:
        """How many messages may be taken now."""
        if not self.active_queues:
            return 0
        if "can_consume" in self.qos.__dict__ or not self.connection.loop:  # worker_disable_prefetch, drain_events()
            return int(not self._buffer and self.qos.can_consume())
        if self._buffer:
            return max(0, self._ahead.number() - len(self._buffer))
        if not self.qos.can_consume():
            return 0
        most = self.qos.can_consume_max_estimate()
        return UNLIMITED if most is None else int(most) + self._ahead.number()

    def pump(self) -> None:
        """Called in each turn of the event loop."""
        if self._failed is not None:
            raise self._failed
        if self._stopped:
            return
        self._pumped = monotonic()
        if self.active_queues or self.qos.has_acks:
            cycle, client = self.connection.cycle, self.client
            if not cycle._client_registered(self, client, "FETCH"):
                self.fetcher.reset()
                cycle._register(self, client, "FETCH")
            if self._buffer and self.qos.has_acks and self.fetcher.has_reply:
                self._read_reply()
            self.fetcher.start()
        if self._buffer and self.connection.loop and self.qos.can_consume():
            self.deliver()
            self.connection.wake()  # the prefork pool may have had its part of this turn before

    def read_fetched(self) -> bool:
        """Called when the connection is readable. Raises Empty if there is no message, RedisError, OSError."""
        delivering = bool(self._buffer)
        self._read_reply()
        if not self._buffer:
            raise Empty
        if not delivering:
            self.deliver()
        return True

    def _read_reply(self) -> None:
        if not (found := self.fetcher.read()):  # acknowledgements only
            return
        self._fetched_at = monotonic()
        for each in found:
            self._queue_cycle.rotate(each.queue)
        self._buffer.extend(found)

    def deliver(self) -> None:
        """Give consumers what was taken; with drain_events() one message. The next turn of the event loop gives more,
        after it has sent acknowledgements: a solo worker runs the tasks in here."""
        loop = self.connection.loop
        until = monotonic() + DELIVERING
        self._delivering = True
        try:
            while self._buffer and (not loop or self.qos.can_consume()):
                try:
                    taken = self._buffer.popleft()
                except IndexError:  # returned meanwhile
                    break
                self._hand_over(taken)
                if not loop or monotonic() > until:
                    break
        finally:
            self._delivering = False
            if self._buffer and loop and self.connection is not None and self.qos.can_consume():
                self.connection.wake()

    def deliver_soon(self) -> None:
        """A task of the prefork pool has ended: at the beginning of the next turn of the event loop, before the part of
        the pool, which then writes the next one to its child process."""
        if self._buffer and not (self._delivering or self._deliver_due or self._stopped or self.connection is None):
            self._deliver_due = True
            self.connection.loop.call_soon(self._deliver_next)

    def _deliver_next(self) -> None:
        self._deliver_due = False
        # A loop without connections is being reset, because one was lost.
        if self._buffer and self.connection is not None and self.connection.loop.readers:
            try:
                self.deliver()
            except Exception as error:  # raised here, the loop would not call what else is due
                self.fail(error)

    def fail(self, error: Exception) -> None:
        """Have the event loop raise an error. Then the worker connects again, and what it held returns to its queues:
        otherwise it would be renewed, and take a slot, for as long as the connection lasts."""
        self._failed = error
        if self.connection is not None:
            self.connection.wake()

    def _hand_over(self, taken: Fetched) -> None:
        if taken.queue not in self._consuming:  # cancelled meanwhile
            with self.raw_client() as client:
                self._return_unread(client, taken)
            return
        self._ahead.count()
        no_ack, callback = self._consuming[taken.queue]
        message = self._read(taken)
        if message is None:
            return
        self.qos.hold(taken.tag, message)
        if no_ack:
            self.qos.ack(taken.tag)
        callback(message)

    def _read(self, taken: Fetched) -> Any:
        """The message; None if it cannot be read, then it is a dead letter."""
        try:
            if len(taken.message) > self._max_bytes:
                raise transport.TooLargeError(f"{len(taken.message)} bytes")
            payload = loads(bytes_to_str(taken.message))
            payload["properties"]["delivery_tag"] = taken.tag
            payload["properties"]["delivery_info"]["queue"] = taken.queue
            message = self.Message(payload, channel=self)
        except Exception as error:  # a message can raise anything
            too_large = isinstance(error, transport.TooLargeError)
            reason = Reason.TOO_LARGE if too_large else Reason.MALFORMED
            self.discard(taken.tag, taken.queue, taken.message, reason, f"{type(error).__name__}: {error}")
            return None
        message.popped = taken.message
        return message

    def discard(self, tag: str, queue: str, message: bytes, reason: Reason, error: str) -> None:
        """Make a message that is held a dead letter. Raises RedisError."""
        if self.durable.config.dead_letters:
            self._dead_letter(reason, error, queue, message, (tag, *self.books))
        else:
            logger.error("a message of queue %s was discarded: %s; %r", queue, reason, error)
            self.qos.ack(tag)

    def basic_get(self, queue: str, no_ack: bool = False, **kwargs: Any) -> Any:
        self.connection.hold_leases(self)
        message = super().basic_get(queue, no_ack=no_ack, **kwargs)
        if message is not None and no_ack:
            self.qos.ack(message.delivery_tag)
        return message

    def _get(self, queue: str, timeout: float | None = None) -> Any:
        """For basic_get. Raises Empty."""
        steps = self.priority_steps
        keys = [*self.books, *(self.key(f"{name}:") for name in ("watcher", "waiting", "wake"))]
        keys += [self.prefixed(self._q_for_pri(queue, step)) for step in steps]
        tag = f"{TAG_PREFIX}{uuid()}:"
        with self.raw_client() as client:
            found = FETCH(client, keys, [1, tag, 0, 1, 0, self._name, self.key("wake:"), 0, 0, dumps(queue)])
        if len(found) == 2:
            raise Empty
        message = self._read(Fetched(f"{tag}{0:012}", queue, found[3]))
        if message is None:
            raise Empty
        return message._raw

    def held(self) -> list[str]:
        """Delivery tags of what was taken and not acknowledged. Called by another thread."""
        return [*self.qos.held(), *(taken.tag for taken in list(self._buffer))]

    # --- Acknowledging ---

    def ack_waits(self) -> None:
        """An acknowledgement waits to be sent: with the next fetch, or at once if there is no event loop."""
        turns = self.fetches and not self._stopped and self.connection is not None and self.connection.loop
        if self.closed:
            try:
                self.qos.send_all()
            except self.broken as error:
                logger.warning("an acknowledgement waits for the next connection: %s", error)
                self.qos.leave_acks()
        elif not turns or monotonic() - self._pumped > LOOP_TURNS:  # it does not while a worker stops
            self.qos.send_all()
        elif get_ident() != self.connection.loop_thread:
            self.connection.wake()

    def send_acks(self, client: Redis) -> None:
        """Called by another thread: a task may block the event loop, or the worker stops. Raises RedisError."""
        if self.qos.has_acks and (self._stopped or monotonic() - self._pumped > LOOP_TURNS):
            self.qos.send_all(client)

    def acks_may_wait(self) -> bool:
        """Those of short tasks are sent together: a prefork worker would send each in a command of its own."""
        if not self._buffer or not self.connection.loop or monotonic() - self.fetcher.sent_at > ACKS_WAIT:
            return False
        if not self._turn_due:
            self._turn_due = True
            self.connection.loop.call_later(ACKS_WAIT, self._turn)
            self.connection.wake()  # kombu has looked for the next timer before this part of the turn
        return True

    def _turn(self) -> None:
        self._turn_due = False

    def fenced(self, operation: str, number: int = 1) -> None:
        """It changed nothing: the messages had been redelivered, because this worker was frozen, or cut off from Redis.
        Or it was sent again, because the connection was lost before the reply."""
        logger.warning("%s: too late for %s messages, which were redelivered; or it was sent twice", operation, number)
        operation_fenced.send(sender=self.durable.app, operation=operation, number=number)

    # --- Giving back ---

    def give_back(
        self, client: Redis, tag: str, payload: Any, queues: list[str], first: bool, deliveries: int = 0
    ) -> bool:
        """Return a message that is held to its queue (a stock worker stores a binding, which may have several). False
        if it has returned already. `first`: it is the next to be taken; `deliveries`: the number of the next one, if
        the last has lapsed. Raises RedisError."""
        if deliveries > self._max_deliveries:
            error = f"delivered {deliveries - 1} times, and each time its worker was killed or cut off"
            self.discard(tag, queues[0], dumps(payload).encode(), Reason.DELIVERIES, error)
            return True
        headers, properties = payload.get("headers"), payload.get("properties")
        if isinstance(headers, dict):
            headers |= {"redelivered": True, "redelivered_at": time.time()}
            if deliveries:
                headers["deliveries"] = deliveries
        if isinstance(properties, dict) and isinstance(properties.get("delivery_info"), dict):
            properties["delivery_info"]["redelivered"] = True
        side = "RPUSH" if first else "LPUSH"
        lists = [self.list_of(queue, payload) for queue in queues]
        expiry = [self._expires.get(queue, 0) for queue in queues]
        return bool(GIVE_BACK(client, [*self.books, *lists], [tag, dumps(payload), side, *expiry]))

    def put_back(self, message: Any, **headers: Any) -> bool:
        returned = super().put_back(message, **headers)
        if not returned:
            self.fenced("requeue")
        return returned

    def _return_unread(self, client: Redis, taken: Fetched) -> None:
        """As it was: it has not been delivered."""
        if (message := self._read(taken)) is not None:
            keys = [*self.books, self.list_of(taken.queue, message._raw)]
            GIVE_BACK(client, keys, [taken.tag, taken.message, "RPUSH", self._expires.get(taken.queue, 0)])

    def return_what_waits(self, client: Redis) -> None:
        """What was read ahead and has waited for long. Called by another thread: a task may block the event loop.
        Raises RedisError."""
        if not self._buffer or monotonic() - self._fetched_at < WAITS or self.connection is None:
            return
        room = self.qos.can_consume_max_estimate()
        if room is None:  # there is no limit, and nothing was read ahead
            return
        for _ in range(len(self._buffer) - room):
            try:
                taken = self._buffer.pop()
            except IndexError:  # handed over meanwhile
                return
            self._return_unread(client, taken)

    def _restore(self, message: Any, leftmost: bool = False) -> None:
        self.qos.give_back([message.delivery_tag], first=not leftmost)

    # --- Delays ---

    def _put(self, queue: str, message: Any, **kwargs: Any) -> None:
        if not self.delays.put(queue, message, kwargs.get("_publish_batch")):
            super()._put(queue, message, **kwargs)

    def queue_delete(self, queue: str, if_unused: bool = False, if_empty: bool = False, **kwargs: Any) -> None:
        with self.raw_client() as client:
            if if_empty and self.delays.any_of(client, queue):
                return
            super().queue_delete(queue, if_unused, if_empty, **kwargs)
            if not if_empty:
                self.delays.delete(client, queue)

    def _purge(self, queue: str) -> int:
        with self.raw_client() as client:
            delayed = self.delays.delete(client, queue)
        return int(super()._purge(queue)) + delayed

    # --- Connections ---

    def _connparams(self, asynchronous: bool = False) -> Any:
        """Notifications need RESP3."""
        parameters = super()._connparams(asynchronous)
        return {**parameters, "protocol": 3} if asynchronous else parameters

    def pool_for_thread(self) -> ConnectionPool:
        """Connections for another thread. They have a time-out: renewing must not wait for a reply that never comes."""
        config = self.durable.config
        waits = {
            "socket_timeout": config.publish_socket_timeout,
            "socket_connect_timeout": config.publish_connect_timeout,
        }
        return ConnectionPool(**{**self._connparams(), **waits})

    def _on_connection_disconnect(self, connection: Any) -> None:
        client = self.__dict__.get("client")
        if client is not None and getattr(client, "connection", None) is connection:
            self.fetcher.reset()
        super()._on_connection_disconnect(connection)

    def stop_taking(self, running: Container[str]) -> None:
        """The event loop ends: acknowledgements are sent at once, and what is not of a running task returns to its
        queue. `running`: delivery tags."""
        if self.fetches and not self._stopped and self.connection is not None:
            self._stopped = True
            with self._giving_back():
                self._return_buffer()
                waiting = [tag for tag in self.qos.held() if tag not in running]
                self.qos.give_back(waiting[::-1], first=True)

    @contextmanager
    def _giving_back(self) -> Iterator[None]:
        try:
            yield
        except self.broken as error:
            logger.warning("messages not returned at the end, they are redelivered: %s", error)
            self.qos.leave_acks()

    def _return_buffer(self) -> None:
        self._buffer.extend(self.fetcher.finish())
        self.qos.send_all()
        with self.raw_client() as client:
            while self._buffer:  # the newest first, so that the oldest is the next
                self._return_unread(client, self._buffer.pop())

    def close(self) -> None:
        if self.fetches and not self.closed and self.connection is not None:
            with self._giving_back():
                self._return_buffer()
            self._in_poll = None
        super().close()
