"""Many publishes in one round trip: `with durable.batch(): …`.

What the app publishes within the block is collected, and sent at its end, or as soon as there are `MESSAGES` or `BYTES`
of it, or with the first task after `SECONDS`: those of a slow generator do not wait for its end. Options, routing,
priorities, signals, stamps and the outbox work as without a batch. Groups, and the headers of chords, are always
published in a batch.

One script publishes what was collected, and stores its answer in `<key_prefix>batch:<id>`. So a publish whose reply was
lost is tried again, as `task_publish_retry_policy` says, and publishes nothing twice.
"""

import json
from collections import UserList
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import wraps
from itertools import count, islice
from math import inf
from time import monotonic
from typing import Any

from kombu import Exchange, Producer
from kombu.exceptions import OperationalError
from kombu.utils.uuid import uuid
from redis import BusyLoadingError, Redis, RedisError, ResponseError

from celery_durable import transport
from celery_durable.clients import forks
from celery_durable.errors import BatchPublishError
from celery_durable.logs import get_logger
from celery_durable.lua import Script
from celery_durable.outbox import PUBLISH_ERRORS, Entry, flattened, renumbered, running_task_stays
from celery_durable.signals import message_published, outbox_written, publish_failed

logger = get_logger(__name__)

MESSAGES, BYTES = 1000, 4 << 20  # at a time: Redis does nothing else meanwhile, for about 2 ms
SECONDS = 0.5
ANSWER_KEPT = 300  # s; a retry that comes later could publish twice

# Publishes a batch, unless an earlier try has. KEYS: the answer. ARGV: s to keep it; for each command its number of
# arguments and these. Returns errors by the number of the command (from 1), as JSON; the other commands have been run.
PUBLISH = Script("""
local answer = redis.call('GET', KEYS[1])
if answer then
    return answer
end
redis.call('SET', KEYS[1], '{}', 'EX', ARGV[1]) -- if Redis is full this fails, and nothing is published
local errors, first, number = {}, 2, 1
while first <= #ARGV do
    local last = first + tonumber(ARGV[first])
    local reply = redis.pcall(unpack(ARGV, first + 1, last))
    if type(reply) == 'table' and reply.err then
        errors[tostring(number)] = reply.err
    end
    first, number = last + 1, number + 1
end
if next(errors) then
    redis.call('SET', KEYS[1], cjson.encode(errors), 'EX', ARGV[1])
end
return redis.call('GET', KEYS[1])
""")


class NoReplyError(OperationalError):
    """Redis has not replied: it may have published, or do so later."""


@dataclass
class Publication:
    """A task of a batch that has not been sent."""

    id: str
    task: str
    queue: str  # for metrics
    entry: Entry | None = None  # in the outbox
    number: int = 1  # of the entry's publication
    retry: bool = True  # without an entry: with one the caller need not wait for more tries
    commands: list[tuple[str, ...]] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of its commands, about."""
        return sum(len(argument) for command in self.commands for argument in command)

    def renumber(self, number: int) -> None:
        """Set the number of the entry's publication in the messages."""
        self.number, self.commands = number, renumbered(self.commands, number)


class Collector:
    """A channel: what is published with it becomes Redis commands of a publication."""

    commands: list[tuple[str, ...]] | None = None

    def __init__(self, producer: Any) -> None:
        self._producer = producer
        self.bindings: dict[tuple[str, str], Any] = {}  # of an exchange and a routing key
        self.tags = map(f"{uuid()}-{{}}".format, count(1))  # a uuid for each message would take a twentieth of the time

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer.channel, name)

    def basic_publish(self, message: Any, **options: Any) -> None:
        channel = self._producer.channel
        channel.collector = self
        try:
            channel.basic_publish(message, _publish_batch=self, **options)
        finally:
            channel.collector = None

    def add(self, command: str, key: str, *arguments: Any) -> None:
        """Called by kombu's channel in place of Redis."""
        if command == "zadd":
            arguments = tuple(each for member, score in arguments[0].items() for each in (score, member))
        key = f"{self._producer.channel.global_keyprefix}{key}"
        assert self.commands is not None
        self.commands.append((command, key, *map(str, arguments)))


UNNAMED = Exchange("")


class CollectingProducer(Producer):
    """While its collector has a list of commands, what is published with it goes there, else to the broker."""

    def __init__(self, producer: Any, collector: Collector) -> None:
        self._pooled, self._collector = producer, collector
        self._declared: dict[int, Any] = {}
        super().__init__(None, exchange=UNNAMED, auto_declare=False)
        self.channel = collector  # given to kombu's constructor, it would bind a copy of the exchange

    def revive(self, channel: Any) -> None:
        """Called after the connection was lost: the new one knows of no exchange."""
        self._pooled.revive(channel)
        self._declared.clear()

    @property
    def connection(self) -> Any:
        """kombu's needs a channel, which cannot be made without a broker."""
        return self._pooled.connection

    def publish(self, body: Any, *args: Any, declare: Any = None, **options: Any) -> Any:
        if self._collector.commands is None:
            return self._pooled.publish(body, *args, declare=declare, **options)
        for entity in declare or ():  # kombu copies it before it looks up whether it is declared
            if id(entity) not in self._declared:
                self._pooled.maybe_declare(entity)
                self._declared[id(entity)] = entity
        return super().publish(body, *args, **{**options, "retry": False})


class BatchProducer(CollectingProducer):
    """What Celery publishes with inside a batch. What is not a task is published at once."""

    def __init__(self, batch: "Batch", producer: Any) -> None:
        self.batch = batch
        super().__init__(producer, Collector(producer))

    def collect(self, commands: list[tuple[str, ...]], send: Callable[[Any], Any]) -> None:
        """Append what `send` publishes with this producer to `commands`."""
        self._collector.commands = commands
        try:
            send(self)
        finally:
            self._collector.commands = None


class Batch:
    """What a thread or a coroutine publishes together. Use `Durable.batch`."""

    def __init__(self, durable: Any, producer: Any, seconds: float) -> None:
        self.durable, self.producer = durable, BatchProducer(self, producer)
        self._pooled, self._seconds = producer, seconds
        self._publications: list[Publication] = []
        self._published: list[str] = []  # ids
        self._bytes = 0
        self.sent_at = monotonic()
        self._forks = forks()
        self._ended = False

    @property
    def ended(self) -> bool:
        """Whether it takes no more; a child process has no part in its parent's."""
        return self._ended or self._forks != forks()

    def end(self) -> None:
        """Take no more."""
        self._ended = True

    def add(self, publication: Publication, send: Callable[[Any], Any] | None) -> None:
        """Collect a task. `send` publishes it with a producer; None: it is only written to the outbox. Raises
        PublishRefusedError, and what `flush` raises."""
        if self.ended:
            raise RuntimeError(f"{publication.task}: its producer belongs to a batch that has ended")
        if send is not None:
            self._collect(publication, send)
        self._publications.append(publication)
        self._bytes += publication.size
        enough = len(self._publications) >= MESSAGES or self._bytes >= BYTES
        if enough or monotonic() - self.sent_at > self._seconds:
            self.flush()
            self.sent_at = monotonic()

    def _collect(self, publication: Publication, send: Callable[[Any], Any]) -> None:
        try:
            self.producer.collect(publication.commands, send)
        except PUBLISH_ERRORS as error:  # no connection, which is needed for the bindings
            publish_failed.send(sender=self.durable.app, task=publication.task, error=error)
            if publication.entry is None:
                raise
            publication.commands = []
            publication.entry = replace(publication.entry, published=0.0)
            logger.warning("%s[%s] not published (%s): the outbox has it", publication.task, publication.id, error)
        self.durable.app.amqp.refuse_too_large(publication.task, publication.size)

    def flush(self) -> None:
        """Send what was collected. Raises BatchPublishError."""
        with running_task_stays():
            self._flush()

    def _flush(self) -> None:
        publications, self._publications, self._bytes = self._publications, [], 0
        self._write_entries(publications)
        sent = [each for each in publications if each.commands]
        refused: dict[str, str] = {}
        unknown: list[str] = []
        retry = any(each.retry and not each.entry for each in sent)
        for publication, outcome in zip(sent, self._send([each.commands for each in sent], retry), strict=True):
            if outcome is None:
                message_published.send(sender=self.durable.app, task=publication.task, queue=publication.queue)
                continue
            publish_failed.send(sender=self.durable.app, task=publication.task, error=outcome)
            if publication.entry:
                self.durable.outbox.not_published(publication.entry, publication.number, outcome)
            elif isinstance(outcome, NoReplyError):
                unknown.append(publication.id)
            else:
                refused[publication.id] = str(outcome)
        failed = {*refused, *unknown}
        self._published += [each.id for each in publications if each.id not in failed]
        if failed:
            raise BatchPublishError(refused, unknown, [*self._published])

    def _write_entries(self, publications: list[Publication]) -> None:
        """Raises BatchPublishError."""
        with_entry = [each for each in publications if each.entry]
        if not with_entry:
            return
        try:
            numbers = self.durable.outbox.write_all([each.entry for each in with_entry])
        except RedisError as error:
            others = {each.id: "the outbox could not be written" for each in publications if not each.entry}
            raise BatchPublishError(others, [each.id for each in with_entry], [*self._published]) from error
        for publication, number in zip(with_entry, numbers, strict=True):
            if number > 1:  # an earlier task had the same id
                publication.renumber(number)
            outbox_written.send(sender=self.durable.app, task=publication.task)

    def _send(self, messages: list[list[tuple[str, ...]]], retry: bool) -> list[Exception | None]:
        """Run each message's commands. Returns its error, if any."""
        if not messages:
            return []
        commands = [command for message in messages for command in message]
        arguments = [ANSWER_KEPT, *flattened(commands)]
        answer_key, replied = self.durable.broker_key(f"batch:{uuid()}"), True

        def publish() -> Any:
            nonlocal replied
            with Redis(connection_pool=self._pooled.channel.pool, single_connection_client=True) as client:  # connects
                replied = False
                try:
                    answer = PUBLISH(client, [answer_key], arguments)
                except (ResponseError, BusyLoadingError):
                    replied = True
                    raise
            replied = True
            return answer

        conf, connection = self.durable.app.conf, self._pooled.connection
        try:
            if retry:
                publish = connection.ensure(self.producer, publish, **conf.task_publish_retry_policy)
            with connection._reraise_as_library_errors():
                errors = json.loads(publish())
        except PUBLISH_ERRORS as error:
            return [error if replied else NoReplyError(str(error))] * len(messages)
        numbers = count(1)
        outcomes: list[Exception | None] = []
        for message in messages:
            own = [errors[str(number)] for number in islice(numbers, len(message)) if str(number) in errors]
            outcomes.append(OperationalError(own[0]) if own else None)
        return outcomes


_open: ContextVar[Batch | None] = ContextVar("celery_durable.batch", default=None)


def open_batch(durable: Any) -> Batch | None:
    """The batch of the running thread or coroutine. A coroutine that was started within a batch may outlive it."""
    batch = _open.get()
    return batch if batch is not None and batch.durable is durable and not batch.ended else None


@contextmanager
def batched(durable: Any, first_at_once: bool = False) -> Iterator[None]:
    """See `Durable.batch`. `first_at_once`: the first task is sent when it is called."""
    app = durable.app
    if open_batch(durable) or not issubclass(app.pool.connection.get_transport_cls(), transport.Transport):
        yield
        return
    with app.producer_pool.acquire(block=True) as producer:
        batch = Batch(durable, producer, SECONDS)
        if first_at_once:
            batch.sent_at = -inf
        token = _open.set(batch)
        try:
            yield
        finally:
            batch.end()
            _open.reset(token)
        batch.flush()


def batching_groups(apply_tasks: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """Celery's group._apply_tasks, in a batch for apps with the library."""

    @wraps(apply_tasks)
    def _apply_tasks(group: Any, tasks: Any, producer: Any = None, app: Any = None, *args: Any, **options: Any) -> Any:
        durable = getattr(app or group.app, "durable", None)
        if producer is not None or durable is None:
            yield from apply_tasks(group, tasks, producer, app, *args, **options)
            return
        # Celery asks a generator for the next task before it publishes one, which runs meanwhile: celery#3021.
        with batched(durable, first_at_once=isinstance(group.tasks, UserList)):
            yield from apply_tasks(group, tasks, producer, app, *args, **options)

    return _apply_tasks
