"""kombu's Redis transport, but a message that it cannot handle becomes a dead letter.

Wire format, keys and time-outs are kombu's, so that publishers and workers without the library can share its queues.
`publishing.Connection` uses it for redis:// and rediss:// in an app that `install` was called for.
"""

import sys
import time
from contextlib import suppress
from queue import Empty
from typing import Any

from kombu.transport import redis
from kombu.transport.virtual import QoS as VirtualQoS
from kombu.utils.json import dumps
from kombu.utils.uuid import uuid
from redis import DataError, Redis, RedisError

from celery_durable import dead_letters
from celery_durable.dead_letters import Reason
from celery_durable.logs import get_logger
from celery_durable.lua import Script

logger = get_logger(__name__)

# Puts an unacknowledged message at the end of a list. Returns 0 if another process has already returned it.
# KEYS: hash and index of unacknowledged messages, list. ARGV: delivery tag, message, the list's expiry (ms; 0: none).
PUT_BACK = Script("""
if redis.call('HDEL', KEYS[1], ARGV[1]) == 0 then
    return 0
end
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('LPUSH', KEYS[3], ARGV[2])
if tonumber(ARGV[3]) > 0 then
    redis.call('PEXPIRE', KEYS[3], ARGV[3])
end
return 1
""")


# Returns a message that a worker has taken to the front of its list; allow-oom: the worker has the only copy. KEYS: as
# above. ARGV: delivery tag, message.
RETURN = Script("""#!lua flags=allow-oom
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('RPUSH', KEYS[3], ARGV[2])
""")


class TooLargeError(ValueError):
    """A message is larger than `Config.max_message_bytes`."""


class Popping:
    """A client that keeps what BRPOP popped: until it is stored as unacknowledged there is no other copy."""

    popped: tuple[bytes, bytes] | None = None  # list (without global_keyprefix) and message
    max_message_bytes = sys.maxsize

    def parse_response(self, connection: Any, command_name: str, **options: Any) -> Any:
        reply = super().parse_response(connection, command_name, **options)  # type: ignore[misc]
        if command_name == "BRPOP" and reply:
            self.popped = reply
            if len(reply[1]) > self.max_message_bytes:
                raise TooLargeError(f"{len(reply[1])} bytes")
        return reply


class Client(Popping, Redis):
    """kombu's client without `global_keyprefix`."""


class PrefixedClient(Popping, redis.PrefixedStrictRedis):
    """kombu's client with `global_keyprefix`."""


class QoS(redis.QoS):
    """A reject without requeue makes a dead letter. A message may have the attribute `dead`: its reason and error."""

    def append(self, message: Any, delivery_tag: str) -> None:
        """kombu's, but it stores the queue instead of the binding: a message returns to the queue that it came from,
        not to every queue of a topic."""
        delivery = message.delivery_info
        binding = delivery["exchange"], delivery["routing_key"]  # KeyError as in kombu if they are missing
        origin = [message._raw, *(("", delivery["queue"]) if "queue" in delivery else binding)]
        with self.pipe_or_acquire() as pipe:
            pipe.zadd(self.unacked_index_key, {delivery_tag: time.time()})
            pipe.hset(self.unacked_key, delivery_tag, dumps(origin))
            pipe.execute()
            VirtualQoS.append(self, message, delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        message = None if requeue else self._delivered.get(delivery_tag)
        if message is None or not self.channel.durable.config.dead_letters:
            super().reject(delivery_tag, requeue=requeue)
        else:
            self.channel.dead_letter(message, *getattr(message, "dead", (Reason.REJECTED, "")))
            self._quick_ack(delivery_tag)

    def renew(self, delivery_tags: list[str]) -> None:
        """Renew messages that the worker still holds, so that no other worker restores them. Raises RedisError."""
        if delivery_tags:
            now = time.time()
            with self.channel.raw_client() as client:
                index = self.channel.prefixed(self.unacked_index_key)
                client.zadd(index, dict.fromkeys(delivery_tags, now), xx=True)


class Channel(redis.Channel):
    QoS = QoS
    _cached_client: tuple[Any, Any] = None, None  # and its pool
    collector: Any = None  # while a message is collected: see batch.py, together.py

    def __init__(self, connection: Any, **options: Any) -> None:
        self.durable = connection.client.durable  # of the app that the connection belongs to
        self._cached_params: dict[bool, dict[str, Any]] = {}
        super().__init__(connection, **options)

    def _get_client(self) -> Any:
        made = super()._get_client()  # checks redis-py's version
        if self.global_keyprefix:
            return lambda **options: PrefixedClient(global_keyprefix=self.global_keyprefix, **options)
        return Client if made is Redis else made

    def _create_client(self, asynchronous: bool = False) -> Any:
        """kombu creates one for each command: a fifth of the time of a publish."""
        if asynchronous:
            return super()._create_client(asynchronous)
        pool, client = self._cached_client
        if pool is not self.pool:
            client = super()._create_client()
            self._cached_client = self.pool, client
        return client

    def raw_client(self) -> Any:
        """A client that prefixes no keys; a context manager. Scripts have several keys, of which kombu prefixes one."""
        return Redis(connection_pool=self.pool)

    def prefixed(self, key: str) -> str:
        """A key with `global_keyprefix`."""
        return f"{self.global_keyprefix}{key}"

    def _connparams(self, asynchronous: bool = False) -> Any:
        """kombu's, cached: they are needed again when a channel restores its messages after its connection is closed,
        and there kombu raises AttributeError 'hostname' (kombu#970)."""
        if self.connection is not None and self.connection.client is not None:
            self._cached_params[asynchronous] = super()._connparams(asynchronous)
        return dict(self._cached_params[asynchronous])

    def _lookup(self, exchange: str, routing_key: str, default: Any = None) -> Any:
        """kombu reads the bindings for each message."""
        if self.collector is None:
            return super()._lookup(exchange, routing_key, default)
        bindings, key = self.collector.bindings, (exchange, routing_key)
        if key not in bindings:
            bindings[key] = super()._lookup(exchange, routing_key, default)
        return bindings[key]

    def _next_delivery_tag(self) -> str:
        return str(super()._next_delivery_tag()) if self.collector is None else next(self.collector.tags)

    # --- Reading ---

    def basic_consume(self, queue: str, no_ack: bool, callback: Any, *args: Any, **kwargs: Any) -> Any:
        self._return_unbooked()

        def hand_over(message: Any) -> Any:
            # From here on the consumer handles the message and its errors.
            if self.client.popped is not None:
                message.popped, self.client.popped = self.client.popped[1], None
            return callback(message)

        return super().basic_consume(queue, no_ack, hand_over, *args, **kwargs)

    def _brpop_read(self, **options: Any) -> Any:
        self.client.popped = None
        config = self.durable.config
        self.client.max_message_bytes = config.max_message_bytes
        try:
            return super()._brpop_read(**options)
        except Exception as error:
            # If nothing was popped, or the consumer already has it, the message is not the cause.
            popped = self.client.popped
            if popped is None:
                raise
            if isinstance(error, OSError | RedisError) and not isinstance(error, DataError):
                # Redis stopped, or became full, before the message was stored as unacknowledged.
                list_name, message = popped
                self.durable.unbooked.append((list_name.decode(), self.connection.delivering, message))
                logger.warning("a message of %r returns to its queue with the next connection: %s", list_name, error)
                raise
            reason = Reason.TOO_LARGE if isinstance(error, TooLargeError) else Reason.MALFORMED
            queue = popped[0].decode().rsplit(self.sep, 1)[0]
            if config.dead_letters:
                self._dead_letter(reason, f"{type(error).__name__}: {error}", queue, popped[1])
            else:
                logger.error("a message of queue %s was discarded: %s; %r", queue, reason, error)
            raise Empty from error

    def _return_unbooked(self) -> None:
        """Return what an earlier connection took and could not store. Raises RedisError."""
        unbooked = self.durable.unbooked
        while unbooked:
            list_name, tag, message = unbooked[0]
            keys = [self.prefixed(key) for key in (self.unacked_key, self.unacked_index_key, list_name)]
            with self.raw_client() as client:
                RETURN(client, keys, [tag, message])
            unbooked.pop(0)

    # --- Dead letters ---

    def dead_letter(self, message: Any, reason: Reason, error: str) -> bool:
        """Make an unacknowledged message a dead letter. False if it has returned to its queue. Raises RedisError."""
        payload = getattr(message, "popped", None) or dumps(message._raw).encode()
        unacked_keys = (self.prefixed(self.unacked_key), self.prefixed(self.unacked_index_key))
        return self._dead_letter(reason, error, _queue_of(message), payload, (message.delivery_tag, *unacked_keys))

    def _dead_letter(
        self, reason: Reason, error: str, queue: str, payload: bytes, unacked: tuple[str, str, str] = ("", "", "")
    ) -> bool:
        durable = self.durable
        new = dead_letters.letter(reason, error, queue, payload, durable.config.max_dead_letter_bytes)
        with self.raw_client() as client:
            return bool(durable.dead_letters.add(client, new, durable.app, unacked))

    # --- Requeueing ---

    def put_back(self, message: Any, **headers: Any) -> bool:
        """Put an unacknowledged message at the end of its queue, with additional headers. False if it has already
        returned. Raises RedisError."""
        queue = _queue_of(message)
        payload = {**message._raw, "headers": {**message._raw["headers"], **headers}}
        list_name = self._q_for_pri(queue, self._get_message_priority(payload))
        keys = [self.prefixed(key) for key in (self.unacked_key, self.unacked_index_key, list_name)]
        with self.raw_client() as client:
            arguments = [message.delivery_tag, dumps(payload), self._expires.get(queue, 0)]
            returned = PUT_BACK(client, keys, arguments)
        self.qos._quick_ack(message.delivery_tag)
        return bool(returned)

    def _do_restore_message(self, payload: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """Sets the header `redelivered_at` (epoch seconds) of a restored message: its wait time counts from then."""
        headers = payload.get("headers")
        if isinstance(headers, dict):
            headers["redelivered_at"] = time.time()
        super()._do_restore_message(payload, *args, **kwargs)


def _queue_of(message: Any) -> str:
    """The queue that a message came from; its routing key if it was fetched and not consumed."""
    return str(message.delivery_info.get("queue") or message.delivery_info.get("routing_key"))


class Transport(redis.Transport):
    Channel = Channel
    delivering = ""  # the newest delivery tag

    def _deliver(self, message: Any, queue: str) -> None:
        """Stores the queue that a message came from: its routing key may differ from the queue's name.

        Each delivery gets its own tag. In kombu the tag belongs to the message: two deliveries of it, over two queues
        of a topic or after its first worker was frozen, would be acknowledged together.
        """
        self.delivering = uuid()
        with suppress(TypeError, KeyError):  # kombu reports what is wrong with it
            message["properties"]["delivery_info"]["queue"] = queue
            message["properties"]["delivery_tag"] = self.delivering
        super()._deliver(message, queue)
