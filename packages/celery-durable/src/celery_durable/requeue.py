"""Requeues or drops a dead letter."""

import json
import time
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from celery import states
from celery.app.task import Context
from kombu.transport.virtual import Channel, Message
from kombu.utils.json import dumps

from celery_durable.consumer import PATIENCE
from celery_durable.dead_letters import UNREADABLE, Letter, Reason
from celery_durable.errors import DeadLetterDroppedError, NotRequeueableError
from celery_durable.outbox import PUBLICATION, Entry

# Headers that no longer apply to a requeued message.
REMOVED_HEADERS = ("redelivered", "redelivered_at", "deliveries", PATIENCE, "eta", "expires")

# With these reasons Celery has not reported the task as failed: its chord still waits.
UNREPORTED = (*UNREADABLE, Reason.UNKNOWN_TASK)


@dataclass(frozen=True)
class Body:
    """The body of a task message."""

    args: Any
    kwargs: Any
    embed: dict[str, Any]  # callbacks, errbacks, chain, chord


class DeadLetterActions:
    """The actions for one app. If an error is raised nothing was changed."""

    def __init__(self, durable: Any) -> None:
        self._durable, self._app = durable, durable.app

    def chord(self, letter: Letter) -> str:
        """The chord that waits for the task: its callback and its group's id. Empty if there is none, or the message
        cannot be read."""
        try:
            message = json.loads(letter.payload)
            callback = body_of(message).embed.get("chord") or {}
            return f"{callback['task']}, group {message['headers'].get('group')}" if callback else ""
        except Exception:  # the payload may be anything
            return ""

    def requeue(self, client: Any, letter: Letter) -> bool:
        """Put it at the end of its queue, with retries and times reset. False if it no longer exists.

        Raises NotRequeueableError, RedisError.
        """
        message = self._message(letter)
        priority = message["properties"].get("priority")
        priority = priority if isinstance(priority, int) else 0
        publication = 0
        if getattr(self._app.tasks.get(letter.task), "outbox", False) and self._durable.config.outbox:
            publication = self._durable.outbox.write(self._entry(letter, message, priority))
            message["headers"][PUBLICATION] = publication
        list_name = self._durable.priority_list(letter.queue, priority)
        taken: bool = self._durable.dead_letters.take(client, letter, list_name, dumps(message).encode())
        if publication and not taken:
            self._durable.outbox.end(letter.task_id, publication)
        return taken

    def drop(self, client: Any, letter: Letter) -> bool:
        """Remove it; a chord that waits for its task fails. False if it no longer exists. Raises RedisError."""
        if not self._durable.dead_letters.take(client, letter):
            return False
        if letter.reason in UNREPORTED and self.chord(letter):
            message = json.loads(letter.payload)
            body = body_of(message)
            request = Context({**message["headers"], **body.embed, "args": body.args, "kwargs": body.kwargs})
            error = DeadLetterDroppedError(f"{letter.task}[{letter.task_id}]: {letter.reason}: {letter.error}")
            self._app.backend.on_chord_part_return(request, states.FAILURE, error)
        return True

    def _message(self, letter: Letter) -> dict[str, Any]:
        config = self._durable.config
        if letter.reason == Reason.MALFORMED:
            raise NotRequeueableError(f"it is malformed ({letter.error})")
        if not letter.whole or letter.size > config.max_message_bytes:
            raise NotRequeueableError(f"it has {letter.size} bytes; max_message_bytes is {config.max_message_bytes}")
        if letter.queue not in {queue.name for queue in self._app.amqp.queues.values()}:
            raise NotRequeueableError(f"the app has no queue {letter.queue!r}")
        try:
            message: dict[str, Any] = json.loads(letter.payload)
            kept = {name: value for name, value in message["headers"].items() if name not in REMOVED_HEADERS}
            message["headers"] = {**kept, "retries": 0, "published_at": time.time()}
            message["properties"]["delivery_tag"] = str(uuid4())
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise NotRequeueableError(f"it cannot be read ({type(error).__name__}: {error})") from error
        return message

    def _entry(self, letter: Letter, message: dict[str, Any], priority: int) -> Entry:
        try:
            body = body_of(message)
        except Exception as error:  # a decoder can raise anything
            raise NotRequeueableError(f"its body cannot be read ({type(error).__name__}: {error})") from error
        return Entry(
            name=letter.task,
            queue=letter.queue,
            headers=message["headers"],
            properties={},
            body=[body.args, body.kwargs, body.embed],
            options={"priority": priority, "exchange_type": "direct"},  # to this queue only
            published=message["headers"]["published_at"],
        )


def body_of(message: dict[str, Any]) -> Body:
    """The body of a task message, compressed or not. Raises any error of decoding."""
    decoder = Channel.__new__(Channel)  # decodes the transport's base64 without a connection
    args, kwargs, embed = Message(message, channel=decoder, accept={"application/json"}).decode()
    return Body(args, kwargs, embed or {})
