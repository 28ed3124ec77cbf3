"""Evidence from the broker."""

import base64
import json
from dataclasses import dataclass
from typing import Any

from kombu.compression import decompress

from celery_app import durable
from tour.evidence import Seen
from tour.waiting import until


@dataclass(frozen=True)
class Message:
    """A message as it was in its queue."""

    headers: dict[str, Any]
    args: list[Any]
    kwargs: dict[str, Any]
    priority: int
    size: int  # bytes


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

    def unacknowledged(self, queue: str, count: int) -> Seen[int]:
        """Number of unacknowledged messages of a private queue, once there are `count`."""

        def taken() -> int:
            return int(durable.broker.hlen(f"{queue}-unacked"))

        until(lambda: taken() == count, f"{count} unacknowledged messages of {queue}")
        return Seen(taken(), "the broker")

    def take_until(self, queue: str, task: str) -> None:
        """Remove all messages of a private queue until there is one of this task."""
        until(lambda: task in [each.headers["task"] for each in self.take(queue, 0).value], f"a message of {task}")

    def take(self, queue: str, least: int = 1) -> Seen[list[Message]]:
        """Remove and return all messages of a private queue, most urgent first, once there are `least`."""
        self.waiting(queue, least)
        taken = []
        for priority, name in enumerate(durable.priority_lists(queue)):
            while raw := durable.broker.rpop(name):
                message = json.loads(raw)
                body = base64.b64decode(message["body"])
                if compression := message["headers"].get("compression"):
                    body = decompress(body, compression)
                args, kwargs, _ = json.loads(body)
                taken.append(Message(message["headers"], args, kwargs, priority, len(raw)))
        return Seen(taken, "the broker")
