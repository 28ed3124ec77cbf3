"""Leases: a worker renews the messages that it holds; those that are no longer renewed return to their queue.

The acknowledgement of what has ended is sent before that, if the event loop does not send it. In a thread with a
connection of its own, because the loop may be busy for as long as a task takes (solo pool).
"""

from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any

from kombu.transport.redis import Mutex, MutexHeld
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads
from redis import Redis, RedisError

from celery_durable.atomic.delays import TICK, move_due
from celery_durable.atomic.scripts import LAPSED, RENEW
from celery_durable.background import Background
from celery_durable.dead_letters import Reason
from celery_durable.logs import get_logger

logger = get_logger(__name__)

BATCH = 500  # tags that are renewed in one step
GIVEN_BACK = 50  # messages at once, each of which takes two round trips: renewing must not wait

TAG_PREFIX = "lease:"  # of the delivery tags of messages that are renewed


class Leases:
    """Of one connection: renews what its channels hold, returns what other workers no longer renew, and moves delayed
    messages that are due."""

    def __init__(self, channel: Any, held: Callable[[], list[str]], channels: Callable[[], list[Any]]) -> None:
        """`channel`: a consuming one, for names and the address; `held`: delivery tags; `channels`: that consume."""
        config = channel.durable.config
        self._channel, self._held, self._channels = channel, held, channels
        self._lease, self._every = config.lease, config.lease_renewal
        self._renewal = config.renewal
        self._visibility = config.visibility_timeout
        self._mutex = channel.prefixed(channel.unacked_mutex_key), config.restore_mutex_expire
        self._renew_at = self._sweep_at = 0.0
        self._steps: list[Callable[[], float | None]] = [  # one may return the seconds until the next tick
            self._send_acks,
            self._renew_in_time,
            self._move_due,
            self._return_what_waits,
            self._sweep_in_time,
        ]
        self._failed = False
        self.only_renews = False
        self._client = Redis(connection_pool=channel.pool_for_thread())
        self._thread = Background("leases", TICK, self._tick)

    def only_renew(self, held: Callable[[], list[str]]) -> None:
        """Its connection is closed; this is what runs on, until the next connection or the end of the worker."""
        self._held, self._steps, self.only_renews = held, [self._renew_in_time], True

    def stop(self) -> None:
        """What is still held is given back by the channels."""
        self._channel.durable.leases.discard(self)
        self._thread.stop(timeout=2)
        self._client.connection_pool.disconnect()

    def _tick(self) -> float:
        failed, wait = False, TICK
        for step in self._steps:
            try:
                wait = step() or wait
            except (RedisError, OSError) as error:
                if not (failed or self._failed):
                    logger.warning("leases: %s; tried again every %g s", error, TICK)
                failed = True
        self._failed = failed
        return TICK if failed else wait

    def _send_acks(self) -> None:
        for channel in self._channels():
            channel.send_acks(self._client)

    def _renew_in_time(self) -> None:
        if self._renewal and monotonic() >= self._renew_at:
            self._renew()
            self._renew_at = monotonic() + self._every

    def _sweep_in_time(self) -> None:
        if monotonic() >= self._sweep_at:
            self._give_back_lapsed()
            self._sweep_at = monotonic() + 2 * TICK

    def _renew(self) -> None:
        tags = self._held()
        lost: list[str] = []
        for start in range(0, len(tags), BATCH):
            lost += map(bytes_to_str, RENEW(self._client, [self._channel.books[1]], tags[start : start + BATCH]))
        if lost and (number := len({*lost} & {*self._held()})):  # the others were acknowledged meanwhile
            self._channel.fenced("renew", number)

    def _move_due(self) -> float:
        queues = [queue for channel in self._channels() for queue in list(channel._consuming)]
        channel = self._channel
        return move_due(self._client, channel.key, queues, channel._name, lambda: monotonic() < self._renew_at)

    def _return_what_waits(self) -> None:
        for channel in self._channels():
            channel.return_what_waits(self._client)

    def _give_back_lapsed(self) -> None:
        ours, of_stock_workers = self._lapsed()
        for tag in ours:
            self._give_back(tag)
        if of_stock_workers:
            # kombu uses the tag of a message again, so by now it may be that of a new delivery. All workers take this
            # lock: what is found under it has not been returned.
            with suppress(MutexHeld), Mutex(self._client, *self._mutex):
                for tag in self._lapsed()[1]:
                    self._give_back(tag)

    def _lapsed(self) -> tuple[list[str], list[str]]:
        """Delivery tags of atomic workers, and of stock ones."""
        arguments = [self._lease, self._visibility, TAG_PREFIX]
        # Two renewals of holders fit into what is left of their lease after such a gap.
        arguments += [self._lease - 2 * self._every, 2 * self._every, GIVEN_BACK]
        keys = [self._channel.books[1], self._channel.key("leases")]
        tags = list(map(bytes_to_str, LAPSED(self._client, keys, arguments)))
        ours = [tag for tag in tags if tag.startswith(TAG_PREFIX)]
        return ours, [tag for tag in tags if not tag.startswith(TAG_PREFIX)]

    def _give_back(self, tag: str) -> None:
        value: Any = self._client.hget(self._channel.books[0], tag)
        if value is None:  # acknowledged meanwhile
            self._client.zrem(self._channel.books[1], tag)
            return
        try:
            payload, exchange, routing_key = loads(bytes_to_str(value))
            queues = list(self._channel._lookup(exchange, routing_key)) if exchange else [routing_key]
            task, deliveries = payload["headers"].get("id"), payload["headers"].get("deliveries", 1)
            if self._channel.give_back(self._client, tag, payload, queues, first=True, deliveries=deliveries + 1):
                logger.warning("task %s of queue %s: its worker is gone; it is redelivered", task, ", ".join(queues))
        except (RedisError, OSError):
            raise
        except Exception as error:  # a message can raise anything
            if self._channel.closed:  # then that raises as well: another worker returns the message
                return
            message, queue = _parts(value)
            self._channel.discard(tag, queue, message, Reason.MALFORMED, f"{type(error).__name__}: {error}")


def _parts(value: bytes) -> tuple[bytes, str]:
    """The message and the queue of what fetch.lua wrote; all of it if it is something else."""
    message, separator, queue = value.removeprefix(b"[").removesuffix(b"]").rpartition(b', "", ')
    return (message, queue.decode(errors="replace").strip('"')) if separator else (value, "")
