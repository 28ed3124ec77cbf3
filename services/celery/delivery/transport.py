"""kombu's stock Redis transport, made safe for messages that it stumbles over: they become dead letters.

Selected by `broker_transport` in settings.py. Wire format, keys and time-outs are kombu's: stock publishers and workers
share its queues. Two options of its own: `dead_letter_key`, a stream, and `max_message_bytes`.
"""

import functools
import logging
import time
from queue import Empty
from typing import Any

from kombu.transport import redis
from kombu.utils.json import dumps
from redis import DataError, Redis, RedisError

from delivery import dead_letters, outbox
from delivery.dead_letters import Reason
from metrics.delivery import count_dead_letter

logger = logging.getLogger(__name__)

# Puts an unacknowledged message at the end of a list, unless somebody else has already given it back.
# KEYS: hash and index of unacknowledged messages, list. ARGV: delivery tag, message.
PUT_BACK = """
if redis.call('HDEL', KEYS[1], ARGV[1]) == 1 then
    redis.call('ZREM', KEYS[2], ARGV[1])
    redis.call('LPUSH', KEYS[3], ARGV[2])
end
"""


class TooLargeError(ValueError):
    """A message is larger than `max_message_bytes`."""


class Client(Redis):
    """Keeps what BRPOP popped: until it is among the unacknowledged messages nobody else has it."""

    popped: tuple[bytes, bytes] | None = None
    max_message_bytes = 0

    def parse_response(self, connection: Any, command_name: str, **options: Any) -> Any:
        reply = super().parse_response(connection, command_name, **options)
        if command_name == "BRPOP" and reply:
            self.popped = reply
            if 0 < self.max_message_bytes < len(reply[1]):
                raise TooLargeError(f"{len(reply[1])} bytes")
        return reply


class QoS(redis.QoS):
    """Rejects without requeue into the dead-letter stream. A message may know why: `dead`, a reason and an error."""

    def append(self, message: Any, delivery_tag: str) -> None:
        super().append(message, delivery_tag)
        self.channel.client.popped = None

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        message = None if requeue else self._delivered.get(delivery_tag)
        if message is None:
            super().reject(delivery_tag, requeue=requeue)
        else:
            self.channel.bury(message, *getattr(message, "dead", (Reason.REJECTED, "")))
            self._quick_ack(delivery_tag)


class Channel(redis.Channel):
    QoS = QoS

    dead_letter_key = dead_letters.KEY
    max_message_bytes = 0  # any size
    from_transport_options = (*redis.Channel.from_transport_options, "dead_letter_key", "max_message_bytes")

    def _get_client(self) -> Any:
        super()._get_client()  # checks redis-py's version
        return Client

    @functools.cached_property
    def _move(self) -> Any:
        return self._create_client().register_script(dead_letters.MOVE)

    @functools.cached_property
    def _put_back(self) -> Any:
        return self._create_client().register_script(PUT_BACK)

    # --- Reading ---

    def _brpop_read(self, **options: Any) -> Any:
        self.client.popped = None
        self.client.max_message_bytes = self.max_message_bytes
        try:
            return super()._brpop_read(**options)
        except Exception as error:
            # Not popped, or already among the unacknowledged: not the message's fault. A connection that broke in
            # between has lost it, and nothing can be written now.
            if self.client.popped is None or (
                isinstance(error, OSError | RedisError) and not isinstance(error, DataError)
            ):
                raise
            reason = Reason.TOO_LARGE if isinstance(error, TooLargeError) else Reason.MALFORMED
            self._bury_popped(reason, f"{type(error).__name__}: {error}")
            raise Empty from error

    def _bury_popped(self, reason: Reason, error: str) -> None:
        name, payload = self.client.popped
        queue = name.decode().rsplit(self.sep, 1)[0]
        entry = dead_letters.fields(reason, error, queue, payload)
        with self.conn_or_acquire() as client:
            client.execute_command("XADD", self.dead_letter_key, "*", *entry)
        self._buried(reason, error, queue, dead_letters.identity(payload))

    def bury(self, message: Any, reason: Reason, error: str) -> None:
        """Make an unacknowledged message a dead letter."""
        queue, payload = str(message.delivery_info.get("routing_key")), dumps(message._raw).encode()
        entry = dead_letters.fields(reason, error, queue, payload)
        keys = [self.unacked_key, self.unacked_index_key, self.dead_letter_key]
        if self._move(keys=keys, args=[message.delivery_tag, *entry]):
            self._buried(reason, error, queue, dead_letters.identity(payload))

    def _buried(self, reason: Reason, error: str, queue: str, identity: tuple[str, str]) -> None:
        task, task_id = identity
        logger.error("dead letter of queue %s: %s; %s[%s] %s", queue, reason, task, task_id, error)
        count_dead_letter(queue, reason)
        outbox.ended(task_id)

    # --- Giving back ---

    def put_back(self, message: Any, **headers: Any) -> None:
        """Put an unacknowledged message at the end of its queue, with these headers besides."""
        payload = {**message._raw, "headers": {**message._raw["headers"], **headers}}
        list_name = self._q_for_pri(message.delivery_info["routing_key"], self._get_message_priority(payload))
        keys = [self.unacked_key, self.unacked_index_key, list_name]
        self._put_back(keys=keys, args=[message.delivery_tag, dumps(payload)])
        self.qos._quick_ack(message.delivery_tag)

    def _do_restore_message(self, payload: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """Stamps `redelivered_at` (epoch seconds) on what goes back: its wait is counted from then."""
        headers = payload.get("headers")
        if isinstance(headers, dict):
            headers["redelivered_at"] = time.time()
        super()._do_restore_message(payload, *args, **kwargs)


class Transport(redis.Transport):
    Channel = Channel
