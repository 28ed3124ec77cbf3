"""Evidence from the broker."""

import base64
import json
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from kombu.compression import decompress

from celery_app import durable
from tour.evidence import Seen
from tour.waiting import UnavailableError, until


@dataclass(frozen=True)
class Message:
    """A message as it was in its queue."""

    headers: dict[str, Any]
    args: list[Any]
    kwargs: dict[str, Any]
    priority: int
    size: int  # bytes


def _message(raw: str) -> Message:
    message = json.loads(raw)
    body = base64.b64decode(message["body"])
    if compression := message["headers"].get("compression"):
        body = decompress(body, compression)
    args, kwargs, _ = json.loads(body)
    return Message(message["headers"], args, kwargs, message["properties"]["priority"], len(raw))


class Broker:
    """What Redis stores about a queue."""

    def by_priority(self, queue: str) -> Seen[dict[int, int]]:
        """Number of waiting messages by priority; priorities without messages are left out."""
        lengths = [int(durable.broker.llen(name)) for name in durable.priority_lists(queue)]
        return Seen({step: length for step, length in enumerate(lengths) if length}, "the broker")

    def waiting(self, queue: str, least: int = 0) -> Seen[int]:
        """Number of waiting messages, once there are `least`."""

        def length() -> int:
            return sum(self.by_priority(queue).value.values())

        until(lambda: length() >= least, f"{least} messages in queue {queue}")
        return Seen(length(), "the broker")

    def put(self, queue: str, message: dict[str, Any], **headers: Any) -> str:
        """Append a copy of a message to a private queue, without Celery, with other headers; returns its new id."""
        task_id, properties = uuid4().hex, {**message["properties"], "delivery_tag": str(uuid4())}
        copy = {**message, "headers": {**message["headers"], **headers, "id": task_id}, "properties": properties}
        durable.broker.lpush(durable.priority_lists(queue)[properties["priority"]], json.dumps(copy))
        return task_id

    def unacknowledged(self, queue: str, count: int) -> Seen[int]:
        """Number of unacknowledged messages of a private queue, once there are `count`."""

        def taken() -> int:
            return int(durable.broker.hlen(f"{queue}-unacked"))

        until(lambda: taken() == count, f"{count} unacknowledged messages of {queue}")
        return Seen(taken(), "the broker")

    def delayed(self, queue: str, count: int) -> Seen[int]:
        """Number of messages that wait in Redis for their ETA, once there are `count`.

        Raises UnavailableError with the stock transport: there they wait in workers.
        """
        if not durable.atomic:
            raise UnavailableError("with TRANSPORT=stock what is due later waits in a worker; use atomic (.env)")

        def waiting() -> int:
            return int(durable.broker.zcard(durable.delayed_key(queue)))

        until(lambda: waiting() == count, f"{count} delayed messages of {queue}")
        return Seen(waiting(), "the broker")

    def take_until(self, queue: str, task: str) -> None:
        """Remove all messages of a private queue until there is one of this task."""
        until(lambda: task in [each.headers["task"] for each in self.take(queue, 0).value], f"a message of {task}")

    def take(self, queue: str, least: int = 1) -> Seen[list[Message]]:
        """Remove and return all messages of a private queue, most urgent first, once there are `least`."""
        return self.take_raw(queue, least).map(lambda taken: [_message(raw) for raw in taken])

    def take_raw(self, queue: str, least: int = 1) -> Seen[list[str]]:
        """The same, as they are stored."""
        self.waiting(queue, least)
        taken = []
        for name in durable.priority_lists(queue):
            while raw := durable.broker.rpop(name):
                taken.append(raw)
        return Seen(taken, "the broker")
