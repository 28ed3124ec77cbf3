"""`Durable`: what `install` returns, and the state of one app that the library's parts share."""

import json
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from kombu.transport.redis import Channel
from redis import Redis
from redis.client import Pipeline

from celery_durable import sentinel
from celery_durable.atomic import support
from celery_durable.batch import batched
from celery_durable.chords import Chords
from celery_durable.clients import Clients, connect
from celery_durable.config import Config
from celery_durable.dead_letters import DeadLetters
from celery_durable.logs import get_logger
from celery_durable.once import Once, once
from celery_durable.outbox import BrokerView, Entry, Outbox
from celery_durable.revocations import Revocations
from celery_durable.settings import TransportOptions
from celery_durable.ticks import Ticks

logger = get_logger(__name__)

OTHER = "other"  # metrics label for a task or queue that the app does not define: its name may be from a message


class Durable:
    """Delivery for one app: its clients, outbox, dead letters, and names in Redis.

    For use in tasks: `once`, `store`, `wait_until_on_disk`. For a periodic task: `reconcile`.
    """

    def __init__(self, app: Any, config: Config) -> None:
        self.app, self.config = app, config
        self._clients = Clients()
        self.outbox = Outbox(config, lambda: self.store, sender=app)
        self.revocations = Revocations(
            config,
            lambda: self.broker,
            lambda: self.broker_key("revoked"),
            lambda: [self.delayed_key(queue) for queue in list(self.app.amqp.queues)],
        )
        self.chords = Chords(config, lambda: self.store)
        self.ticks = Ticks(config, lambda: self.store)
        self.worker_name = ""  # client name of this worker's connections
        self.leases: set[Any] = set()  # of the open connections, see atomic.leases
        self.unsent_acks: deque[str] = deque()  # delivery tags of connections that were lost, see atomic.qos
        self.unbooked: list[tuple[str, str, bytes]] = []  # list, delivery tag, message: taken and not yet stored
        self._transport = TransportOptions(config)

    # --- For tasks ---

    @property
    def store(self) -> Any:
        """This process's client of the store; its replies are text."""
        return self._clients.get(self.config.store, lambda: connect(self.config.store, self.config))

    @property
    def broker(self) -> Any:
        """This process's client of the broker, for everything but messages; its replies are text."""
        return self._clients.get(self.broker_url, self._connect_broker)

    def once(self, marker: str, effect: Callable[[Pipeline], Any], ttl: float | None = None) -> Once:
        """Apply an effect in the store unless its marker is there: see `once.once`."""
        return once(self.store, marker, effect, ttl, marked=self.config.done_markers)

    def wait_until_on_disk(self) -> None:
        """Wait until the written outbox entries survive a power loss: see `Outbox.wait_until_on_disk`."""
        self.outbox.wait_until_on_disk()

    def batch(self) -> AbstractContextManager[None]:
        """`with durable.batch():` tasks that the block calls are published together at its end, and from time to time
        before it if there are many, or it takes long: for many tasks that is several times as fast.

        Raises BatchPublishError, which says what is published, and what is not. If the block raises, what was not sent
        is discarded. Do not wait for a result within the block. There is one try if all tasks without the outbox say
        `retry=False`. Celery's signals of a publish are sent when the task is called.
        """
        return batched(self)

    def reconcile(self) -> dict[str, int]:
        """Publish lost messages again, check chords, remove the registrations of workers that were killed long ago.

        Called by the task `celery_durable.reconcile`, which beat sends. Returns {"published", "waiting",
        "overdue_chords"}. Raises outbox.PUBLISH_ERRORS while Redis is unavailable.
        """
        with self.raw_broker() as client:
            found = self.outbox.republish(self.app.amqp.publish_entries, self._view(client))
        self._forget_workers()
        return {**found, "overdue_chords": self.chords.look(self.app.backend)}

    def workers(self) -> dict[str, dict[str, Any]]:
        """The registration of each worker (see `worker.Registration`), by node name. Raises RedisError."""
        found = {}
        for node, text in self.broker.hgetall(self.broker_key("workers")).items():
            with suppress(ValueError):  # not written by the library
                entry = json.loads(text)
                if isinstance(entry, dict) and isinstance(entry.get("heartbeat"), int | float):
                    found[node] = entry
        return found

    def _forget_workers(self) -> None:
        oldest = time.time() - self.config.registration_kept
        gone = [node for node, entry in self.workers().items() if entry["heartbeat"] < oldest]
        if gone:
            self.broker.hdel(self.broker_key("workers"), *gone)

    # --- The transport ---

    @cached_property
    def atomic(self) -> bool:
        """Whether the atomic transport is used: Config asks for it, and nothing is missing. Decided at first use; a
        worker may fall back when it starts."""
        if self.config.transport != "atomic":
            return False
        missing = support.missing_for_app(self.broker_url, self._transport_options)
        if missing:
            self.fall_back(missing)
        return not missing

    @property
    def max_delay(self) -> float:
        """The longest delay that the stock transport publishes. For the atomic one Config allows any."""
        return min(self.config.max_delay, self.config.visibility_timeout)

    def fall_back(self, missing: list[str]) -> None:
        """Use the stock transport, with its limits, although Config asks for the atomic one."""
        config = self.config
        logger.warning(
            "transport: stock is used, not atomic: %s. So a killed worker's tasks return after %g s, not %g s, or are "
            "lost if it had just taken them; this process publishes no delay over %g s; a message that kills its "
            "workers is redelivered without end",
            "; ".join(missing),
            config.visibility_timeout,
            config.lease,
            self.max_delay,
        )
        self.atomic = False

    # --- Connections ---

    def worker_options(self, call: dict[str, Any] | None) -> dict[str, Any]:
        """Transport options of a consumer's connection; `call`: those given by the caller."""
        return self._transport.of_worker(self._transport_options, call, self.worker_name)

    def publisher_options(self, call: dict[str, Any] | None) -> dict[str, Any]:
        """Transport options of a publisher's connection."""
        return self._transport.of_publisher(self._transport_options, call, self.worker_name)

    # --- The broker ---

    @property
    def broker_url(self) -> str:
        """Address of the broker."""
        url = self.app.conf.broker_write_url
        return str(url if isinstance(url, str) else url[0])

    def raw_broker(self) -> Redis:
        """A client of the broker whose replies are bytes; a context manager."""
        return self._connect_broker(decode_responses=False)

    def _connect_broker(self, **options: Any) -> Redis:
        if urlsplit(self.broker_url).scheme == "sentinel":
            return sentinel.connect(self.broker_url, self._transport_options, self.config, **options)
        client: Redis = connect(self.broker_url, self.config, **options)
        return client

    @property
    def _transport_options(self) -> dict[str, Any]:
        return dict(self.app.conf.broker_transport_options or {})

    def prefixed(self, key: str) -> str:
        """A key of kombu in the broker."""
        return f"{self._transport_options.get('global_keyprefix', '')}{key}"

    def broker_key(self, name: str) -> str:
        """A key of the library in the broker."""
        return self.prefixed(f"{self.config.key_prefix}{name}")

    @property
    def unacked_key(self) -> str:
        """The hash of messages that workers hold."""
        return self.prefixed(self._transport_options.get("unacked_key", Channel.unacked_key))

    @cached_property
    def dead_letters(self) -> DeadLetters:
        """The stream of dead letters."""
        return DeadLetters(self.config, self.broker_key("dead-letters"))

    def priority_steps(self) -> list[int]:
        """Steps of the queues' priorities, most urgent first."""
        return list(self._transport_options.get("priority_steps") or Channel.priority_steps)

    def priority_lists(self, queue: str) -> list[str]:
        """The Redis lists of a queue, most urgent first."""
        return [self._list(queue, step) for step in self.priority_steps()]

    def priority_list(self, queue: str, priority: int) -> str:
        """The Redis list in which a message of that priority waits."""
        steps = self.priority_steps()
        return self._list(queue, max((step for step in steps if step <= priority), default=steps[-1]))

    def _list(self, queue: str, step: int) -> str:
        separator = self._transport_options.get("sep", Channel.sep)
        return self.prefixed(f"{queue}{separator}{step}" if step else queue)

    def delayed_key(self, queue: str) -> str:
        """The sorted set of a queue's delayed messages, of the atomic transport."""
        return self.broker_key(f"delayed:{queue}")

    def _view(self, client: Redis) -> BrokerView:
        patience = self.config.publish_socket_timeout
        return BrokerView(client, self._lists_of, self._delayed_of, self.unacked_key, patience)

    def _lists_of(self, entry: Entry) -> list[str]:
        """The Redis lists that an outbox entry's message went to."""
        return [self.priority_list(queue, entry.priority) for queue in self.app.amqp.queues_of(entry)]

    def _delayed_of(self, entry: Entry) -> list[str]:
        """The sorted sets in which an outbox entry's message waits for its ETA."""
        return [self.delayed_key(queue) for queue in self.app.amqp.queues_of(entry)]

    # --- Names for metrics ---

    def task_of(self, name: str) -> str:
        """The name of a task of the app. Any other comes perhaps from a message, and each would be another series."""
        return name if name in self.app.tasks else OTHER

    def queue_of(self, delivery_info: Any) -> str:
        """The queue of the app that a message came from or goes to, by its binding. Never a name from the message
        itself: that could be anything."""
        info = delivery_info or {}
        exchange, key, queue = (info.get(name) for name in ("exchange", "routing_key", "queue"))
        known = self._queue_names
        return known.get(("", queue)) or known.get((exchange, key)) or known.get(("", key)) or OTHER

    @cached_property
    def _queue_names(self) -> dict[tuple[Any, Any], str]:
        """Names of the queues by exchange and routing key. For a direct exchange Celery gives only the queue."""
        queues = self.app.amqp.queues.values()
        by_binding = {(queue.exchange.name, queue.routing_key): queue.name for queue in queues}
        return by_binding | {("", queue.name): queue.name for queue in queues}
