"""The Celery app of `make test-faults PEER=…`, without celery-durable; mounted in place of celery_app.py.

PEER=celery               Celery's own Redis transport, with the settings that its documentation has against lost tasks
PEER=celery-redis-plus    the same settings, with the transport of that package

The tasks of chaos/ledger.py have done markers, and are retried while Redis is unavailable, as with celery-durable.
"""

import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import celery
import redis
from celery import Celery
from redis.client import Pipeline

from settings import CELERY

PEER = os.environ["PEER"]
PLUS = PEER == "celery-redis-plus"
ADMIN = "redis://admin:admin@{}:6379/0"  # of the fault tests' Redis; the user `celery` may not use plus' keys
VISIBILITY_TIMEOUT = 90  # s, as here with the stock transport; defaults: Celery 3600, celery-redis-plus 300
PRIORITIES = 10
SEPARATOR = "\x06\x16"


class PlusBroker(redis.Redis):
    """The broker; it answers as if the messages of celery-redis-plus were where stock Celery has them: in a list for
    each priority, and in the hash `unacked`."""

    def llen(self, name: str) -> int:
        """All messages of a queue are in its first list."""
        return int(self.zcard(f"queue:{name}"))

    def hlen(self, name: str) -> int:
        """The number of unacknowledged ones."""
        return len(self.hgetall(name))

    def hgetall(self, name: str) -> dict[str, str]:
        """The unacknowledged ones."""
        assert name == "unacked"
        taken = {
            tag
            for queue in ("high", "low")
            for tag in {*self.zrange(f"messages_index:{queue}", 0, -1)} - {*self.zrange(f"queue:{queue}", 0, -1)}
        }
        return {tag: payload for tag in taken if (payload := self.hget(f"message:{tag}", "payload"))}

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """RPUSH: a payload to the front of a queue."""
        if args[0] != "RPUSH":
            return super().execute_command(*args, **options)
        _, queue, payload = args
        tag, fields = str(uuid4()), {"routing_key": queue, "priority": 9, "native_delayed": 0, "eta": 0}
        self.hset(f"message:{tag}", mapping={"payload": payload, "delivery_count": 0, **fields})
        self.zadd(f"messages_index:{queue}", {tag: 10**10})
        return self.zadd(f"queue:{queue}", {tag: 0})


class Peer:
    """What the tasks and the tests use of celery-durable."""

    config = SimpleNamespace(outbox=False)
    store = redis.Redis.from_url(ADMIN.format("redis-results"), decode_responses=True)
    broker = (PlusBroker if PLUS else redis.Redis).from_url(
        ADMIN.format("redis"), decode_responses=True, encoding_errors="replace"
    )

    class dead_letters:  # noqa: N801 - an attribute: there are none
        key = "none"

        @staticmethod
        def read(*_: object) -> Iterator[Any]:
            return iter(())

    def raw_broker(self) -> redis.Redis:
        return self.broker

    def priority_lists(self, queue: str) -> list[str]:
        """Names of a queue's lists, as kombu makes them."""
        return [queue, *(f"{queue}{SEPARATOR}{priority}" for priority in range(1, PRIORITIES))]

    def once(self, key: str, effect: Callable[[Pipeline], None], ttl: int) -> None:
        """The effect and its done marker, in one transaction."""

        def step(pipe: Pipeline) -> None:
            done = pipe.exists(key)
            pipe.multi()
            if not done:
                effect(pipe)
                pipe.set(key, 1, ex=ttl)

        self.store.transaction(step, key)

    def wait_until_on_disk(self) -> None:
        """What was published is on the broker's disk."""
        self.broker.execute_command("WAITAOF", 1, 0, 5000)


class Task(celery.Task):
    """The base class of every task."""

    abstract = True
    autoretry_for = (redis.RedisError,)
    max_retries = 20
    retry_backoff = 1
    retry_backoff_max = 15

    def apply_async(self, *args: Any, **options: Any) -> Any:
        """In celery-redis-plus the highest priority is the largest number."""
        if PLUS and "priority" in options:
            options["priority"] = PRIORITIES - 1 - options["priority"]
        return super().apply_async(*args, **options)


app = Celery("celery_app", task_cls=Task)
app.conf.update(
    CELERY,
    imports=["chaos.ledger"],
    broker_url=ADMIN.format("redis"),
    result_backend=ADMIN.format("redis-results"),
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=4,
    worker_soft_shutdown_timeout=6,
    worker_cancel_long_running_tasks_on_connection_loss=True,
    broker_connection_retry_on_startup=True,
)
app.conf.broker_transport_options = {
    **app.conf.broker_transport_options,
    "visibility_timeout": VISIBILITY_TIMEOUT,
    "client_name": f"celery-worker:low@{os.uname().nodename}:low",  # the rows that make connections deaf look for it
}
if PLUS:
    app.conf.broker_transport = "celery_redis_plus.transport:Transport"

durable = Peer()
