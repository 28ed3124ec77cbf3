"""Delays: a message with an ETA waits in a sorted set of its queue until it is due. No worker holds it meanwhile.

A publisher puts it there. One from a publisher with the stock transport is taken by a worker, which parks it. Any
worker moves what is due to the queues' lists.
"""

import time
from collections.abc import Callable
from typing import Any

from kombu.utils.json import dumps
from kombu.utils.uuid import uuid
from redis import Redis

from celery_durable import transport
from celery_durable.atomic.scripts import DELAY, DUE
from celery_durable.times import eta_of

AT_ONCE = 0.5  # s; a message that is due sooner does not wait there
IS_DUE = 2  # see delay.lua
BATCH = 500  # messages that are moved in one step
TICK = 0.5  # s between two looks for what is due
SOONEST = 0.02  # s; the least, for the worker that looks when the next message is due


class Delays:
    """Of one channel."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel

    def key(self, queue: str) -> str:
        """The sorted set of a queue."""
        return str(self._channel.key(f"delayed:{queue}"))

    def put(self, queue: str, message: Any, batch: Any = None) -> bool:
        """Have a message wait that is published, or collected in a batch. False: it has no ETA, is due, or its queue
        expires."""
        channel, due = self._channel, eta_of(message.get("headers") or {})
        if due <= time.time() + AT_ONCE or queue in channel._expires:
            return False
        # The id keeps apart two messages with the same bytes.
        member = f"{channel.list_of(queue, message)}\0{uuid()}\0{dumps(message)}"
        if batch is not None:
            # The client of a batch adds global_keyprefix.
            batch.add("zadd", f"{channel.durable.config.key_prefix}delayed:{queue}", {member: due})
            return True
        with channel.raw_client() as client:
            client.zadd(self.key(queue), {member: due})
        return True

    def park(self, message: Any, due: float) -> bool:
        """Have a message that is held wait until it is due (epoch seconds). False: it stays with this worker, because
        it is due by the clock of Redis, or its queue expires. Raises RedisError."""
        channel, queue, tag = self._channel, transport._queue_of(message), message.delivery_tag
        if queue in channel._expires:
            return False
        member = b"%s\0%s\0%s" % (channel.list_of(queue, message._raw).encode(), tag.encode(), message.popped)
        with channel.raw_client() as client:
            done = DELAY(client, [*channel.books, self.key(queue)], [tag, due, member])
        if done == IS_DUE:
            message.headers["eta"] = None
            return False
        if not done:
            channel.fenced("delay")
        channel.qos._quick_ack(tag)
        return True

    def any_of(self, client: Any, queue: str) -> bool:
        """Whether messages of a queue wait."""
        return bool(client.exists(self.key(queue)))

    def delete(self, client: Any, queue: str) -> int:
        """Delete the messages of a queue. Returns how many there were."""
        pipe = client.pipeline()
        pipe.zcard(self.key(queue))
        pipe.delete(self.key(queue))
        number, _ = pipe.execute()
        return int(number)


def move_due(
    client: Redis, key: Callable[[str], str], queues: list[str], caller: str, go_on: Callable[[], bool]
) -> float:
    """Move what is due to the queues' lists, while there is more and `go_on` says so. `key`: of a name of the library;
    `caller`: a unique name. Returns the seconds until the next call. Raises RedisError."""
    if not queues:
        return TICK
    keys = [key(f"mover:{','.join(sorted(queues))}"), *(key(f"delayed:{queue}") for queue in queues)]
    while True:
        moved, wait = DUE(client, keys, [BATCH, caller, int(TICK * 1000)])
        if moved < BATCH or not go_on():
            return max(int(wait) / 1000, SOONEST)
