"""How the app publishes: through the outbox for tasks with `outbox=True`, and never a message that would run twice."""

import time
from collections.abc import Callable
from functools import cache, cached_property
from math import inf
from typing import Any

from celery.app import amqp
from celery.utils.nodenames import anon_nodename
from kombu import connection, messaging, serialization
from kombu.transport import redis
from kombu.utils.collections import HashedSeq
from kombu.utils.json import dumps

from celery_durable import sentinel
from celery_durable.atomic.transport import Transport as AtomicTransport
from celery_durable.batch import Batch, BatchProducer, Publication
from celery_durable.clients import credentials, database, forks
from celery_durable.composing import in_front
from celery_durable.consumer import PATIENCE
from celery_durable.errors import (
    BatchPublishError,
    DelayTooLongError,
    MessageTooLargeError,
    NotInOutboxError,
)
from celery_durable.outbox import PUBLICATION, PUBLISH_ERRORS, Entry, running_task_stays
from celery_durable.signals import message_published, outbox_written, publish_failed
from celery_durable.times import eta_of
from celery_durable.together import EntryProducer
from celery_durable.transport import Transport

# Options that belong to one publish, and are not kept in the entry.
OF_ONE_PUBLISH = ("queue", "declare", "event_dispatcher", "retry", "retry_policy")

# Headers of the first message that a retry would inherit, although they do not apply to it.
NOT_INHERITED = ("redelivered", "redelivered_at", "deliveries", PATIENCE)

SCALARS = (int, float, bool, type(None))

ENVELOPE = 1000  # bytes that the transport adds to a message's body, headers and properties, redelivery included


class Connection(amqp.Connection):
    """kombu's connection with the library's transport for Redis. The URL does not change: Flower and `celery report`
    still see redis://."""

    durable: Any  # of its app, see `AMQP`

    def get_transport_cls(self) -> Any:
        found = super().get_transport_cls()
        if found is redis.SentinelTransport:
            return sentinel.Transport
        if found is not redis.Transport:
            return found
        return AtomicTransport if self.durable.atomic else Transport

    @cached_property
    def has_store(self) -> bool:
        """Whether it is to the database of the store, as the same user."""
        one_redis = self.get_transport_cls() in (Transport, AtomicTransport) and len(self.alt) < 2
        return one_redis and database(self.as_uri()) == database(self.durable.config.store)

    def Pool(self, limit: int | None = None, **kwargs: Any) -> Any:  # noqa: N802 - kombu's name
        """Connections of publishers. kombu's pool makes connections of its own class, with its own transport."""
        return Pool(self, limit, **kwargs)

    def _init_params(self, *args: Any, **kwargs: Any) -> None:
        super()._init_params(*args, **kwargs)
        if provider := credentials(self.durable.config, self.userid, self.password):
            self.credential_provider = provider

    def info(self) -> dict[str, Any]:
        """Without the password file: a worker sends this as JSON in its reply to a remote control command."""
        info: dict[str, Any] = super().info()
        return {name: value for name, value in info.items() if name != "credential_provider"}

    def as_uri(self, include_password: bool = False, mask: str = "**", **kwargs: Any) -> str:
        """With the password of the file, where the password is asked for: Flower connects to this address by itself.
        Raises redis' AuthenticationError when the file cannot be read."""
        provider = self.credential_provider
        if not include_password or provider is None:
            return str(super().as_uri(include_password, mask, **kwargs))
        known = self.clone(password=provider.get_credentials()[-1], credential_provider=None)
        return str(known.as_uri(include_password, mask, **kwargs))

    def __eqhash__(self) -> HashedSeq:
        """Key of kombu's pools: two apps share no connection, even to the same broker."""
        return HashedSeq(*super().__eqhash__(), id(self.durable))

    def ensure_connection(self, *args: Any, **kwargs: Any) -> Any:
        """Tries to reconnect every second; kombu's delays grow to 30 s."""
        return super().ensure_connection(*args, **{"interval_start": 1, "interval_step": 0, **kwargs})


class Pool(connection.ConnectionPool):
    """A pool of connections of the app's class."""

    def new(self) -> Any:
        pooled = type("PooledConnection", (connection.PooledConnection, type(self.connection)), {})
        return pooled(self, **dict(self.connection._info(resolve=False)))


class Producer(messaging.Producer):
    """kombu's producer, which looks up whether a queue is declared before it makes a copy of it to declare: the copy
    takes a twelfth of a publish."""

    def maybe_declare(self, entity: Any, retry: bool = False, **retry_policy: Any) -> Any:
        transport = self.channel.connection
        if transport and entity and entity.can_cache_declaration and hash(entity) in transport.client.declared_entities:
            return False
        return super().maybe_declare(entity, retry, **retry_policy)


class AMQP(amqp.AMQP):
    """Celery's AMQP, which publishes through the outbox for tasks with `outbox=True`.

    `apply_async(later=True)` only writes such a task to the outbox, and the reconciler publishes it: for a caller that
    must not wait for a broker that is unavailable or frozen.
    """

    @cached_property
    def Connection(self) -> type:  # noqa: N802 - Celery's name
        """The class of the app's connections, with a reference to the app's `Durable`."""
        return type("Connection", (Connection,), {"durable": self.app.durable})

    @property
    def producer_pool(self) -> Any:
        """Celery's pool of producers, of the library's class."""
        pool = super().producer_pool
        pool.Producer = in_front(Producer, pool.Producer)
        return pool

    @cached_property
    def _send(self) -> Callable[..., Any]:
        """Celery's function that publishes a task."""
        return super()._create_task_sender()  # type: ignore[no-any-return]

    @cached_property
    def _retries(self) -> bool:
        return bool(self.app.conf.task_publish_retry)

    def as_task_v2(
        self, task_id: str, name: str, args: Any = None, kwargs: Any = None, *rest: Any, **options: Any
    ) -> Any:
        """Celery's message of a task. What shortens the repr of arguments takes a sixth of a publish, and most are
        short. The name of the process is made once."""
        options["origin"] = options.get("origin") or _origin(forks())
        for option, value, limit in (
            ("argsrepr", args or (), self.argsrepr_maxsize),
            ("kwargsrepr", kwargs or {}, self.kwargsrepr_maxsize),
        ):
            if options.get(option) is None and (text := _short_repr(value, limit)):
                options[option] = text
        return super().as_task_v2(task_id, name, args, kwargs, *rest, **options)

    def send_once(self, producer: Any, name: str, message: Any, **options: Any) -> Any:
        """Publish a task now, without the outbox."""
        if options.get("retry") is False:
            _connect_once(producer.connection)
        try:
            sent = self._send(producer, name, message, **self._stamped(options))
        except Exception as error:
            publish_failed.send(sender=self.app, task=name, error=error)
            raise
        message_published.send(sender=self.app, task=name, queue=self._queue_of(options))
        return sent

    def _stamped(self, options: dict[str, Any]) -> dict[str, Any]:
        """The options of a publish, with the time and without what a retry must not inherit."""
        if (exchange := options.get("exchange")) and not options.get("declare"):
            options["declare"] = self._bound_to(exchange) or None
        kept = {key: value for key, value in (options.get("headers") or {}).items() if key not in NOT_INHERITED}
        options["headers"] = {**kept, "published_at": time.time()}  # epoch s; wait times and ages count from it
        return options

    def _create_task_sender(self) -> Callable[..., Any]:
        config, outbox = self.app.durable.config, self.app.durable.outbox

        def send_task_message(producer: Any, name: str, message: Any, later: bool = False, **options: Any) -> Any:
            self._refuse_too_long_a_delay(name, message.headers)
            entry = None
            if config.outbox and getattr(self.app.tasks.get(name), "outbox", False):
                entry = self._entry(name, message, options, published=0.0 if later else time.time())
            elif later:
                raise NotInOutboxError(f"later: {name} has no outbox; give it outbox=True, or publish it now")
            if entry is not None or not isinstance(producer, BatchProducer):
                self._refuse_what_is_too_large(name, message, self._serializer_of(options))
            if isinstance(producer, BatchProducer):
                return self._collect(producer.batch, name, message, options, entry, later)
            if entry is None:
                with running_task_stays():
                    return self.send_once(producer, name, message, **options)
            if not later and getattr(producer.connection, "has_store", False):
                return self._send_with_entry(producer, name, message, entry, options)
            with running_task_stays():
                number = outbox.write(entry)
            outbox_written.send(sender=self.app, task=name)
            if later:
                return None
            try:
                return self.send_once(producer, name, message, **{**_numbered(options, number), "retry": False})
            except PUBLISH_ERRORS as error:
                outbox.not_published(entry, number, error)
                return None

        return send_task_message

    def _send_with_entry(self, producer: Any, name: str, message: Any, entry: Entry, options: dict[str, Any]) -> Any:
        """Publish a task and write its outbox entry, in one round trip."""
        together = EntryProducer(producer, self.app.durable.outbox, entry)
        try:
            with running_task_stays():
                return self.send_once(together, name, message, **{**_numbered(options, 1), "retry": False})
        except PUBLISH_ERRORS as error:
            if not together.number:
                raise
            self.app.durable.outbox.not_published(entry, together.number, error)
            return None
        finally:
            if together.number:
                outbox_written.send(sender=self.app, task=name)

    def _collect(
        self, batch: Batch, name: str, message: Any, options: dict[str, Any], entry: Entry | None, later: bool
    ) -> None:
        """Add a task to a batch. Raises what Batch.add raises."""
        task_id = message.headers.get("id") or message.properties["correlation_id"]  # the latter in task protocol 1
        retry = options.get("retry")
        if retry is None:
            retry = self._retries
        publication = Publication(task_id, name, self._queue_of(options), entry, retry=retry)
        if not retry:
            _connect_once(batch.producer.connection)
        options = self._stamped(options if entry is None else _numbered(options, publication.number))

        def send(producer: Any) -> None:
            self._send(producer, name, message, **options)

        batch.add(publication, None if later else send)

    def _queue_of(self, options: dict[str, Any]) -> str:
        """The queue that a message was published to, for metrics."""
        exchange, key = options.get("exchange"), options.get("routing_key")
        if exchange and key:
            info = {"exchange": getattr(exchange, "name", exchange), "routing_key": key}
        else:
            queue = options.get("queue") or self.default_queue
            info = {"queue": getattr(queue, "name", queue)}
        return str(self.app.durable.queue_of(info))

    def publish_entries(self, entries: list[tuple[Entry, int]]) -> dict[str, Exception]:
        """Publish outbox entries' messages, each with the number of its publication. Returns errors by task id. Raises
        outbox.PUBLISH_ERRORS while the broker is unavailable."""
        errors: dict[str, Exception] = {}
        with self.app.producer_pool.acquire(block=True) as producer:
            batch = Batch(self.app.durable, producer, seconds=inf)
            for entry, number in entries:
                message = amqp.task_message(entry.headers, entry.properties, tuple(entry.body), None)
                options = {**_numbered(entry.options, number), "queue": entry.queue or None}
                try:
                    self._collect(batch, entry.name, message, options, None, later=False)
                except PUBLISH_ERRORS:
                    raise
                except Exception as error:  # its queue may have been removed
                    publish_failed.send(sender=self.app, task=entry.name, error=error)
                    errors[entry.id] = error
            try:
                batch.flush()
            except BatchPublishError as error:
                if error.unknown or len(error.refused) + len(errors) == len(entries):
                    raise
                errors |= {task_id: ValueError(text) for task_id, text in error.refused.items()}
        return errors

    def queues_of(self, entry: Entry) -> list[str]:
        """Names of the queues that an outbox entry's message goes to, as far as known.

        Raises outbox.PUBLISH_ERRORS.
        """
        try:
            queue = self.queues[entry.queue] if entry.queue else None
        except KeyError:  # it was removed
            return []
        exchange, key = entry.options.get("exchange"), entry.options.get("routing_key")
        kind = entry.options.get("exchange_type") or (queue.exchange.type if queue is not None else "direct")
        if queue is not None and kind == "direct" and not (exchange and key):
            return [str(queue.name)]
        if queue is not None:
            exchange, key = exchange or queue.exchange.name, key or queue.routing_key
        with self.app.producer_or_acquire() as producer, producer.connection._reraise_as_library_errors():
            channel = producer.channel
            for bound in self._bound_to(exchange):
                bound(channel).declare()
            return [str(name) for name in channel._lookup(exchange, key)]

    def _bound_to(self, exchange: Any) -> list[Any]:
        """The app's queues of an exchange. kombu takes an exchange that a process has not declared for a direct one,
        and a message to a topic is lost."""
        name = getattr(exchange, "name", exchange)
        return [queue for queue in self.queues.values() if queue.exchange.name == name]

    def _entry(self, name: str, message: Any, options: dict[str, Any], published: float) -> Entry:
        serializer = self._serializer_of(options)
        if serializer != "json":
            raise NotInOutboxError(
                f"{name}: its serializer is {serializer}; the outbox keeps JSON, use serializer='json'"
            )
        if "id" not in message.headers:
            raise NotInOutboxError(f"{name}: task_protocol is 1; the outbox needs 2, Celery's default")
        queue = options.get("queue") or ("" if options.get("exchange") else self.default_queue)
        kept = {key: value for key, value in options.items() if key not in OF_ONE_PUBLISH}
        if exchange := kept.get("exchange"):
            kept["exchange"] = exchange if isinstance(exchange, str) else exchange.name
        return Entry(
            name=name,
            queue=queue if isinstance(queue, str) else queue.name,
            headers=message.headers,
            properties=message.properties,
            body=message.body,
            options=kept,
            published=published,
        )

    def _refuse_too_long_a_delay(self, name: str, headers: dict[str, Any]) -> None:
        """Raises DelayTooLongError: a worker with the stock transport holds the message until it is due."""
        durable = self.app.durable
        if durable.atomic:
            return
        delay = eta_of(headers) - time.time()
        if delay > durable.max_delay:
            raise DelayTooLongError(
                f"{name}: due in {delay:.0f} s; with the stock transport a countdown, ETA or retry delay is "
                f"{durable.max_delay:g} s at most (Config.max_delay). For a later time use the atomic transport, beat, "
                "or a table that a periodic task reads."
            )

    def _serializer_of(self, options: dict[str, Any]) -> str:
        """The name of a message's serializer."""
        return str(options.get("serializer") or self.app.conf.task_serializer)

    def _refuse_what_is_too_large(self, name: str, message: Any, serializer: str) -> None:
        """Raises MessageTooLargeError for a message that a worker would not accept."""
        _, _, body = serialization.dumps(message.body, serializer)
        base64 = (len(body) + 2) // 3 * 4
        self.refuse_too_large(name, base64 + len(dumps(message.headers)) + len(dumps(message.properties)) + ENVELOPE)

    def refuse_too_large(self, name: str, size: int) -> None:
        """Raises MessageTooLargeError for a message of a task, of `size` bytes."""
        limit = self.app.durable.config.max_message_bytes
        if size > limit:
            raise MessageTooLargeError(
                f"{name}: a message of {size} bytes; max_message_bytes is {limit}. "
                "Store the data elsewhere, and send its key."
            )


def _connect_once(connection: Any) -> None:
    """Let the connection of a publish without retries fail at its first try. kombu stores a retried publish's policy in
    options that all connections of the pool share, so the next new connection is retried too: 6 s on a frozen broker,
    not 3."""
    connection.transport_options = {**connection.transport_options, "max_retries": 0}


@cache
def _origin(forks: int) -> str:
    """The name of this process in its messages."""
    return str(anon_nodename())


def _numbered(options: dict[str, Any], publication: int) -> dict[str, Any]:
    """Options of a publish, with the number of the entry's message: a retry inherits the headers of its first try."""
    return {**options, "headers": {**(options.get("headers") or {}), PUBLICATION: publication}}


def _short_repr(arguments: Any, limit: int) -> str | None:
    """The repr of arguments that are numbers or short texts, else None."""
    values = arguments.values() if isinstance(arguments, dict) else arguments
    if isinstance(arguments, dict | list | tuple) and all(
        type(value) in SCALARS or (type(value) is str and len(value) < limit) for value in values
    ):
        text = repr(arguments)
        return text if len(text) <= limit else None
    return None
