"""How the app publishes: by way of the outbox for tasks that ask for it, and never what comes back before it is due."""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import Any

from celery import current_task
from celery.app import amqp
from kombu import serialization
from kombu.utils.json import dumps
from redis import RedisError

import timing
from delivery import outbox
from delivery.outbox import PUBLISH_ERRORS, Unit, epoch
from metrics.delivery import OUTBOX_WRITTEN
from settings import settings

logger = logging.getLogger(__name__)

# Options that belong to one publish, and not to what is published.
OF_ONE_PUBLISH = (
    "queue",
    "exchange",
    "exchange_type",
    "routing_key",
    "declare",
    "event_dispatcher",
    "retry",
    "retry_policy",
)


ENVELOPE = 1000  # bytes that the transport adds to a message's body, headers and properties, redelivery included


class DelayTooLongError(ValueError):
    """A countdown, ETA or retry delay beyond timing.MAX_DELAY; the message was not published."""


class TimeLimitTooLongError(ValueError):
    """A hard time limit beyond the visibility timeout; the message was not published."""


class MessageTooLargeError(ValueError):
    """A message beyond MAX_MESSAGE_BYTES; it was not published."""


class Connection(amqp.Connection):
    """Looks every second whether a broker that is away is back; kombu's waits grow to 30 s."""

    def ensure_connection(self, *args: Any, **kwargs: Any) -> Any:
        return super().ensure_connection(*args, **{"interval_start": 1, "interval_step": 0, **kwargs})


class AMQP(amqp.AMQP):
    """Celery's way to publish, by way of the outbox for tasks with `outbox = True`.

    `apply_async(later=True)` writes such a task down and leaves the publishing to the reconciler: for a caller that may
    not wait for a broker that is away or frozen.
    """

    Connection = Connection

    @cached_property
    def send_once(self) -> Callable[..., Any]:
        """Celery's way to publish a task, without the outbox."""
        send = super()._create_task_sender()

        def send_once(producer: Any, name: str, message: Any, **options: Any) -> Any:
            if options.get("retry") is False:
                # kombu leaves a retried publish's policy in options that all connections of the pool share, and the
                # next new connection is retried: 6 s on a frozen broker, not 3.
                connection = producer.connection
                connection.transport_options = {**connection.transport_options, "max_retries": 0}
            return send(producer, name, message, **options)

        return send_once

    def _create_task_sender(self) -> Callable[..., Any]:
        send = self.send_once

        def send_task_message(producer: Any, name: str, message: Any, later: bool = False, **options: Any) -> Any:
            refuse_what_runs_twice(name, message.headers)
            refuse_what_is_too_large(name, message)
            if not getattr(self.app.tasks.get(name), "outbox", False):
                if later:
                    raise ValueError(f"later: {name} has no outbox; give it outbox=True, or publish it now")
                return send(producer, name, message, **options)
            unit = self._unit(name, message, options, published=0.0 if later else time.time())
            unit.write()
            if current_task and current_task.request.id == unit.id:
                outbox.goes_on()
            OUTBOX_WRITTEN.labels(name).inc()
            if later:
                return None
            try:
                return send(producer, name, message, **{**options, "retry": False})
            except PUBLISH_ERRORS as error:
                logger.warning("%s[%s] not published (%s): the outbox has it", name, message.headers["id"], error)
                with suppress(RedisError):  # it is there; this is to have it published soon
                    replace(unit, published=0.0).write()
                return None

        return send_task_message

    def send_unit(self, unit: Unit) -> None:
        """Publish a unit's message with its own id. Raises kombu's OperationalError."""
        message = amqp.task_message(unit.headers, unit.properties, tuple(unit.body), None)
        with self.app.producer_or_acquire() as producer, producer.connection._reraise_as_library_errors():
            self.send_once(producer, unit.name, message, queue=unit.queue, **unit.options)

    def _unit(self, name: str, message: Any, options: dict[str, Any], published: float) -> Unit:
        queue = options.get("queue") or self.default_queue
        return Unit(
            name=name,
            queue=queue if isinstance(queue, str) else queue.name,
            headers=message.headers,
            properties=message.properties,
            body=message.body,
            options={key: value for key, value in options.items() if key not in OF_ONE_PUBLISH},
            published=published,
        )


def refuse_what_runs_twice(name: str, headers: dict[str, Any]) -> None:
    """Raises DelayTooLongError or TimeLimitTooLongError: after the visibility timeout a message is delivered again."""
    delay = epoch(headers.get("eta")) - time.time()
    if delay > timing.MAX_DELAY:
        raise DelayTooLongError(
            f"{name}: due in {delay:.0f} s; on Redis a countdown, ETA or retry delay is {timing.MAX_DELAY} s at most "
            "(timing.MAX_DELAY). What is later is for beat, or for a table that a periodic task looks into."
        )
    limit = (headers.get("timelimit") or [None])[0]
    if limit and limit >= timing.VISIBILITY_TIMEOUT:
        raise TimeLimitTooLongError(
            f"{name}: time_limit is {limit:g} s; on Redis it must be less than {timing.VISIBILITY_TIMEOUT} s "
            "(timing.VISIBILITY_TIMEOUT), or the task runs again beside itself. Cut it into smaller ones."
        )


def refuse_what_is_too_large(name: str, message: Any) -> None:
    """Raises MessageTooLargeError for what a worker's transport would not take."""
    _, _, body = serialization.dumps(message.body, "json")
    size = (len(body) + 2) // 3 * 4 + len(dumps(message.headers)) + len(dumps(message.properties)) + ENVELOPE  # base64
    if size > settings.max_message_bytes:
        raise MessageTooLargeError(
            f"{name}: a message of {size} bytes; MAX_MESSAGE_BYTES is {settings.max_message_bytes}. "
            "Keep the data elsewhere, and send its name."
        )
