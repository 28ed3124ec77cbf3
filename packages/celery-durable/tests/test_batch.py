"""Many publishes in one round trip."""

import asyncio
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from celery import Celery, chain, chord, group
from celery.canvas import StampingVisitor
from celery.signals import after_task_publish, before_task_publish
from kombu import Exchange, Queue
from kombu.exceptions import OperationalError
from redis import ConnectionError as RedisConnectionError
from redis.connection import AbstractConnection

from celery_durable import BatchPublishError, Config, MessageTooLargeError, install
from celery_durable.batch import BYTES, MESSAGES, PUBLISH
from celery_durable.outbox import PUBLICATION
from celery_durable.signals import message_published, publish_failed

from .conftest import NewApp
from .project import close, run_message
from .redis_server import RedisServer

QUEUE = "celery"


class Shop:
    """An app with tasks, and what it has published."""

    def __init__(self, app: Any, client: Any) -> None:
        self.app, self.client = app, client
        self.sold: list[Any] = []

        def sell(*args: Any, **kwargs: Any) -> Any:
            self.sold.append(args[0] if args else None)
            return args[0] if args else None

        self.sell = app.task(sell, name="sell", shared=False)
        self.charge = app.task(sell, name="charge", shared=False, outbox=True)
        app.finalize()

    def batch(self) -> Any:
        return self.app.durable.batch()

    def messages(self, queue: str = QUEUE) -> list[dict[str, Any]]:
        """The messages that wait in a queue, the next one first."""
        lists = self.app.durable.priority_lists(queue)
        return [json.loads(payload) for name in lists for payload in reversed(self.client.lrange(name, 0, -1))]

    def ids(self, queue: str = QUEUE) -> list[str]:
        return [message["headers"]["id"] for message in self.messages(queue)]

    def run_all(self) -> None:
        while payloads := list(reversed(self.client.lrange(QUEUE, 0, -1))):
            self.client.delete(QUEUE)
            for payload in payloads:
                run_message(self.app, payload)

    def publish(self, *calls: Any) -> None:
        """Publish signatures in a batch."""
        with self.batch():
            for call in calls:
                call.apply_async()

    def fail(self, match: str, *calls: Any) -> BatchPublishError:
        """The error of a batch."""
        with pytest.raises(BatchPublishError, match=match) as raised:
            self.publish(*calls)
        return raised.value


NewShop = Callable[..., Shop]


@pytest.fixture
def new_shop(new_app: NewApp, client: Any) -> NewShop:
    return lambda *args, **config: Shop(new_app(*args, **config), client)


@pytest.fixture(params=["stock", "atomic"])
def shop(request: pytest.FixtureRequest, new_shop: NewShop) -> Shop:
    return new_shop(transport=request.param)


@pytest.fixture
def announced() -> Iterator[list[tuple[str, str]]]:
    """Signals of publishing: name and task."""
    said: list[tuple[str, str]] = []
    receivers = []
    for signal in (message_published, publish_failed):

        def receiver(signal: Any, task: str, name: str = signal.name, **_: Any) -> None:
            said.append((name, task))

        signal.connect(receiver)
        receivers.append((signal, receiver))
    yield said
    for signal, receiver in receivers:
        signal.disconnect(receiver)


@pytest.fixture
def lose_replies(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Have the connection break after Redis has run a batch, a number of times."""
    left = 0
    read_response = AbstractConnection.read_response

    def read(connection: Any, *args: Any, **options: Any) -> Any:
        nonlocal left
        reply = read_response(connection, *args, **options)
        if left and reply == b"{}":
            left -= 1
            connection.disconnect()
            raise RedisConnectionError("the reply is lost")
        return reply

    def lose(number: int) -> None:
        nonlocal left
        left = number

    monkeypatch.setattr(AbstractConnection, "read_response", read)
    return lose


@pytest.fixture
def round_trips(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A line for each request to Redis."""
    sent: list[str] = []
    send = AbstractConnection.send_packed_command

    def counted(connection: Any, command: Any, *args: Any, **options: Any) -> Any:
        sent.append(str(command)[:100])
        return send(connection, command, *args, **options)

    monkeypatch.setattr(AbstractConnection, "send_packed_command", counted)
    return sent


# --- What is published ---


def test_tasks_are_published_in_their_order_when_the_block_ends(shop: Shop) -> None:
    with shop.batch():
        results = [shop.sell.delay(number) for number in range(50)]
        assert shop.ids() == []
    assert shop.ids() == [result.id for result in results]
    shop.run_all()
    assert shop.sold == list(range(50))


class Stamp(StampingVisitor):
    def on_signature(self, sig: Any, **headers: Any) -> dict[str, Any]:
        return {"shop": "A"}


def calls(shop: Shop) -> list[Callable[[], Any]]:
    """Calls with all kinds of options."""
    later = datetime(2036, 1, 1, tzinfo=UTC)
    stamped = shop.sell.s(1)
    stamped.stamp(visitor=Stamp())
    return [
        lambda: shop.sell.delay(1, 2.5, None, True, "é\0'", key={"a": [1]}),
        lambda: shop.sell.apply_async((1,), priority=7),
        lambda: shop.sell.apply_async((1,), headers={"trace": "x"}, shadow="other"),
        lambda: shop.sell.apply_async((1,), expires=later, time_limit=5, soft_time_limit=4, retries=3),
        lambda: shop.sell.apply_async((1,), link=shop.sell.s(2), link_error=shop.sell.s(3)),
        lambda: shop.sell.apply_async((1,), compression="zlib", serializer="json"),
        lambda: shop.sell.apply_async(("x" * 3000, "it's\n"), {"a": "y" * 3000}),
        lambda: shop.app.send_task("unknown", (1,), queue="other"),
        lambda: stamped.apply_async(),
        lambda: chain(shop.sell.s(1), shop.sell.s(2)).apply_async(),
        lambda: shop.charge.apply_async((1,), priority=2),
    ]


def comparable(app: Any, message: dict[str, Any]) -> Any:
    """A message without its ids and times."""
    with app.connection_for_read() as connection:
        channel = connection.default_channel
        body = channel.Message(message, channel=channel, accept={"application/json"}).decode()
    text = json.dumps({**message, "body": body}, sort_keys=True)
    text = re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}(-\d+)?", "ID", text)
    text = re.sub(r'"published_at": [\d.]+', '"published_at": 0', text)
    return json.loads(re.sub(r'"expiration": "\d+"', '"expiration": 0', text))


@pytest.mark.parametrize("number", range(11))
def test_a_message_is_the_same_as_without_a_batch(new_shop: NewShop, number: int) -> None:
    shop = new_shop()
    call = calls(shop)[number]
    call()
    (alone,) = [*shop.messages(), *shop.messages("other")]
    shop.client.flushdb()
    with shop.batch():
        call()
    (together,) = [*shop.messages(), *shop.messages("other")]
    assert comparable(shop.app, together) == comparable(shop.app, alone)


def test_delayed_tasks_wait_in_redis(new_shop: NewShop) -> None:
    shop = new_shop({"broker_transport_options": {"global_keyprefix": "p:"}}, transport="atomic")
    with shop.batch():
        shop.sell.apply_async((1,), countdown=3600, task_id="a", priority=5)
        shop.sell.delay(2)
    ((member, due),) = shop.client.zrange("p:celery-durable:delayed:celery", 0, -1, withscores=True)
    place, _, payload = member.split("\0")
    assert place == "p:celery\x06\x163"
    assert json.loads(payload)["headers"]["id"] == "a"
    assert 3590 < due - time.time() < 3601
    assert shop.client.llen("p:celery") == 1


def test_a_topic_reaches_its_queues_and_its_bindings_are_read_once(new_shop: NewShop) -> None:
    topic = Exchange("news", type="topic")
    queues = [Queue("one", topic, routing_key="a.*"), Queue("two", topic, routing_key="*.b"), Queue(QUEUE)]
    shop = new_shop({"task_queues": queues})
    with shop.batch():
        for _ in range(20):
            shop.sell.apply_async((1,), exchange="news", routing_key="a.b")
    assert len(shop.messages("one")) == len(shop.messages("two")) == 20
    assert shop.client.info("commandstats")["cmdstat_smembers"]["calls"] < 5


def test_a_queue_that_expires_expires(new_shop: NewShop) -> None:
    shop = new_shop({"task_queues": [Queue(QUEUE, queue_arguments={"x-expires": 60_000})]})
    with shop.batch():
        shop.sell.delay(1)
    assert 0 < shop.client.pttl(QUEUE) <= 60_000


def test_events_of_tasks_are_sent(new_shop: NewShop, client: Any) -> None:
    shop = new_shop({"task_send_sent_event": True})
    with client.pubsub() as subscriber:
        subscriber.psubscribe("/0.celeryev/*")
        assert subscriber.get_message(timeout=10)["type"] == "psubscribe"
        with shop.batch():
            shop.sell.apply_async((1,), task_id="a")
        event = json.loads(subscriber.get_message(timeout=10)["data"])
    assert "task.sent" in json.dumps(event)


# --- One round trip ---


def test_celerys_signals_are_sent_for_each_task(shop: Shop) -> None:
    sent: list[tuple[str, str]] = []

    def before(sender: str, headers: dict[str, Any], **_: Any) -> None:
        sent.append(("before", headers["id"]))
        headers["added"] = "by a receiver"

    def after(sender: str, headers: dict[str, Any], **_: Any) -> None:
        sent.append(("after", headers["id"]))

    before_task_publish.connect(before)
    after_task_publish.connect(after)
    try:
        with shop.batch():
            for task_id in ("a", "b"):
                shop.sell.apply_async((1,), task_id=task_id)
    finally:
        before_task_publish.disconnect(before)
        after_task_publish.disconnect(after)
    assert sent == [("before", "a"), ("after", "a"), ("before", "b"), ("after", "b")]
    assert [message["headers"]["added"] for message in shop.messages()] == ["by a receiver"] * 2


def test_many_tasks_take_few_round_trips(shop: Shop, round_trips: list[str]) -> None:
    shop.sell.delay(0)  # connects
    round_trips.clear()
    with shop.batch():
        for number in range(200):
            shop.sell.delay(number)
            shop.charge.delay(number)
    assert len(round_trips) < 20, round_trips
    assert len(shop.messages()) == 401


def test_what_the_reconciler_publishes_takes_few_round_trips(shop: Shop, round_trips: list[str]) -> None:
    with shop.batch():
        for number in range(200):
            shop.charge.apply_async((number,), later=True)
    assert shop.messages() == []
    round_trips.clear()
    assert shop.app.durable.reconcile()["published"] == 200
    assert len(round_trips) < 50, round_trips
    assert len(shop.messages()) == 200


def test_a_group_and_a_chord_take_few_round_trips(new_shop: NewShop, round_trips: list[str]) -> None:
    shop = new_shop()
    shop.sell.delay(0)
    round_trips.clear()
    members = group(shop.sell.s(number) for number in range(100)).apply_async()
    chord([shop.sell.s(number) for number in range(100)], shop.sell.s()).apply_async()
    to_broker = [each for each in round_trips if "SUBSCRIBE" not in each]  # to results, by Celery's group
    assert len(to_broker) < 30, to_broker
    assert [result.id for result in members] == shop.ids()[1:101]
    shop.run_all()
    assert shop.sold[-1] == list(range(100))


def test_what_is_large_is_sent_in_parts(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celery_durable.batch.SECONDS", 60)
    with shop.batch():
        for number in range(MESSAGES + 1):
            shop.sell.delay(number)
        assert len(shop.messages()) == MESSAGES
    shop.client.delete(QUEUE)
    with shop.batch():
        for _ in range(8):
            shop.sell.delay("x" * (BYTES // 8))
        assert len(shop.messages()) > 1


def test_tasks_of_a_slow_generator_do_not_wait_for_its_end(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celery_durable.batch.SECONDS", 0.001)
    sent: list[int] = []  # when a member was asked for

    def members() -> Iterator[Any]:
        for number in range(6):
            time.sleep(0.02)
            sent.append(len(shop.messages()))
            yield shop.sell.s(number)

    chord(members(), shop.sell.s()).apply_async()
    assert sent[:3] == [0, 0, 1]  # Celery asks for the next before it publishes one
    assert sent[-1] > 1
    assert len(shop.messages()) == 6


def test_a_part_that_was_sent_is_not_sent_again(shop: Shop) -> None:
    with shop.batch():
        shop.sell.delay(1)
    with shop.batch():
        pass
    assert len(shop.messages()) == 1
    (answer,) = shop.client.keys("celery-durable:batch:*")
    assert 0 < shop.client.ttl(answer) <= 300


# --- Where a batch begins and ends ---


def test_a_batch_within_a_batch_ends_with_it(shop: Shop) -> None:
    with shop.batch():
        with shop.batch():
            shop.sell.delay(1)
        group([shop.sell.s(2)]).apply_async()
        assert shop.messages() == []
    assert len(shop.messages()) == 2


def test_after_an_exception_nothing_is_published(shop: Shop, announced: list[Any]) -> None:
    with suppress(KeyError), shop.batch():
        shop.sell.delay(1)
        shop.charge.delay(1)
        raise KeyError
    assert shop.messages() == announced == []
    assert shop.app.durable.outbox.size() == 0
    shop.sell.delay(2)
    assert len(shop.messages()) == 1


def test_other_threads_and_apps_publish_at_once(shop: Shop, new_shop: NewShop) -> None:
    other = new_shop()
    with shop.batch():
        thread = threading.Thread(target=shop.sell.apply_async, kwargs={"task_id": "thread"})
        thread.start()
        thread.join(30)
        other.sell.apply_async((1,), task_id="other")
        assert shop.ids() == ["thread", "other"]


def test_a_producer_of_the_caller_publishes_at_once(shop: Shop) -> None:
    with shop.app.producer_pool.acquire() as producer, shop.batch():
        shop.sell.apply_async((1,), producer=producer)
        group([shop.sell.s(2)]).apply_async(producer=producer)
        assert len(shop.messages()) == 2


def test_a_coroutine_that_outlives_the_batch_publishes_at_once(shop: Shop) -> None:
    async def later() -> None:
        shop.sell.apply_async((1,), task_id="later")

    async def run() -> None:
        with shop.batch():
            task = asyncio.create_task(later())
        await task

    asyncio.run(run())
    assert shop.ids() == ["later"]


def test_a_child_process_of_the_batch_publishes_at_once(shop: Shop) -> None:
    with shop.batch():
        shop.sell.apply_async((1,), task_id="parent")
        child = os.fork()
        if not child:
            try:
                shop.sell.apply_async((1,), task_id="child")
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert shop.ids() == ["child"]
    assert shop.ids() == ["child", "parent"]


def test_a_producer_of_a_batch_that_has_ended_is_refused(shop: Shop) -> None:
    with shop.batch(), shop.app.producer_or_acquire() as producer:
        pass
    with pytest.raises(RuntimeError, match="sell: its producer belongs to a batch that has ended"):
        shop.sell.apply_async((1,), producer=producer)


def test_what_is_not_a_task_is_published_at_once(shop: Shop) -> None:
    with shop.batch(), shop.app.producer_or_acquire() as producer:
        producer.publish({"a": 1}, routing_key="plain", declare=[Queue("plain")])
        assert shop.client.llen("plain") == 1


def test_another_broker_than_redis_publishes_at_once(redis_server: RedisServer) -> None:
    app: Any = Celery("tests", broker="memory://", set_as_current=False)
    install(app, Config(store=redis_server.url))
    task = app.task(close, name="task", shared=False)
    try:
        with app.durable.batch(), app.connection_for_read() as connection:
            task.apply_async((1,))
            assert connection.SimpleQueue(QUEUE).get(timeout=10).headers["task"] == "task"
    finally:
        close(app)


# --- Refusals ---


def test_a_message_that_is_too_large_is_refused_at_its_call(new_shop: NewShop) -> None:
    shop = new_shop(max_message_bytes=10_000)
    with shop.batch():
        shop.sell.apply_async((1,), task_id="a")
        for task in (shop.sell, shop.charge):
            with pytest.raises(MessageTooLargeError, match=f"{task.name}: a message of"):
                task.delay("x" * 10_000)
        with pytest.raises(MessageTooLargeError, match="charge: a message of"):
            shop.charge.apply_async(("x" * 10_000,), later=True)
        shop.sell.apply_async((1,), task_id="b")
    assert shop.ids() == ["a", "b"]
    assert shop.app.durable.outbox.size() == 0


def test_a_full_redis_refuses_all(shop: Shop, redis_server: RedisServer, announced: list[Any]) -> None:
    shop.sell.delay(0)
    redis_server.client.config_set("maxmemory", 1)
    calls = [shop.sell.s(1).set(task_id=task_id) for task_id in ("a", "b")]
    error = shop.fail(r"2 tasks not published, 0 perhaps published: .*maxmemory", *calls)
    redis_server.client.config_set("maxmemory", 0)
    assert error.refused.keys() == {"a", "b"}
    assert len(shop.messages()) == 1
    assert announced[1:] == [("publish_failed", "sell")] * 2


def test_a_message_that_redis_refuses_does_not_keep_others_from_their_queue(shop: Shop, announced: list[Any]) -> None:
    shop.sell.apply_async((1,), queue="broken")  # declares it
    shop.client.set("broken", "not a list")
    announced.clear()
    error = shop.fail(
        "1 tasks not published, 0 perhaps published: WRONGTYPE",
        shop.sell.s(1).set(task_id="a"),
        shop.sell.s(1).set(task_id="b", queue="broken"),
        shop.charge.s(1).set(task_id="c", queue="broken"),
        shop.sell.s(1).set(task_id="d"),
    )
    assert (list(error.refused), error.unknown) == (["b"], [])
    assert shop.ids() == ["a", "d"]
    assert sorted(announced) == sorted(
        [("message_published", "sell")] * 2 + [("publish_failed", "sell"), ("publish_failed", "charge")]
    )
    assert shop.client.zscore("celery-durable:outbox:due", "c") == 0


# --- Lost connections ---


def test_a_batch_whose_reply_was_lost_is_not_published_twice(
    shop: Shop, lose_replies: Callable[[int], None], announced: list[Any]
) -> None:
    shop.sell.delay(0)
    lose_replies(1)
    with shop.batch():
        for number in range(10):
            shop.sell.apply_async((1,), task_id=f"{number}")
    assert shop.ids()[1:] == [f"{number}" for number in range(10)]
    assert announced == [("message_published", "sell")] * 11


def test_after_a_lost_connection_exchanges_are_declared_again(
    new_shop: NewShop, lose_replies: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """kombu's new connection takes an exchange that it has not declared for a direct one."""
    monkeypatch.setattr("celery_durable.batch.MESSAGES", 2)
    topic = Exchange("news", type="topic")
    queues = [Queue("one", topic, routing_key="a.*"), Queue("two", topic, routing_key="b.*"), Queue(QUEUE)]
    shop = new_shop({"task_queues": queues})
    lose_replies(1)
    with shop.batch():
        for key in ("a.1", "a.2", "b.1", "b.2"):
            shop.sell.apply_async((1,), exchange="news", routing_key=key, task_id=key)
    assert (shop.ids("one"), shop.ids("two")) == (["a.1", "a.2"], ["b.1", "b.2"])


def test_a_producer_of_a_batch_that_is_revived_collects_as_before(shop: Shop) -> None:
    """Celery revives it when the publish of a callback failed."""
    with shop.batch(), shop.app.producer_or_acquire() as producer:
        producer.revive(producer.connection)
        shop.sell.apply_async((1,), task_id="a")
        assert shop.ids() == []
    assert shop.ids() == ["a"]


def test_errors_of_a_batch_whose_reply_was_lost_are_reported(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.sell.apply_async((1,), queue="broken")  # declares it
    shop.client.set("broken", "not a list")
    read_response = AbstractConnection.read_response
    lost: list[bytes] = []

    def read(connection: Any, *args: Any, **options: Any) -> Any:
        reply = read_response(connection, *args, **options)
        if not lost and b"WRONGTYPE" in (reply if isinstance(reply, bytes) else b""):
            lost.append(reply)
            connection.disconnect()
            raise RedisConnectionError("the reply is lost")
        return reply

    monkeypatch.setattr(AbstractConnection, "read_response", read)
    shop.fail("WRONGTYPE", shop.sell.s(1).set(task_id="a", queue="broken"), shop.sell.s(1).set(task_id="b"))
    assert lost
    assert shop.ids() == ["b"]


def test_tasks_without_a_reply_are_named(shop: Shop, lose_replies: Callable[[int], None], announced: list[Any]) -> None:
    shop.sell.delay(0)
    lose_replies(100)
    calls = shop.sell.s(1).set(task_id="a"), shop.charge.s(1).set(task_id="b")
    assert shop.fail("0 tasks not published, 1 perhaps published: ", *calls).unknown == ["a"]
    assert announced[1:] == [("publish_failed", "sell"), ("publish_failed", "charge")]
    assert shop.client.zscore("celery-durable:outbox:due", "b") == 0


@pytest.mark.parametrize("called", ["each", "group"])
def test_tasks_that_were_published_before_the_connection_broke_are_named(
    shop: Shop, lose_replies: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, called: str
) -> None:
    monkeypatch.setattr("celery_durable.batch.MESSAGES", 2)

    def signatures() -> Iterator[Any]:
        for number in range(6):
            if len(shop.messages()) >= 2:
                lose_replies(100)
            yield shop.sell.s(number)

    def call() -> None:
        if called == "group":
            group(signatures()).apply_async()
        else:
            with shop.batch():
                for signature in signatures():
                    signature.apply_async()

    with pytest.raises(BatchPublishError) as raised:
        call()
    error, ids = raised.value, shop.ids()
    assert (len(error.published) >= 2, error.refused, len(error.unknown)) == (True, {}, 2)
    assert ids == error.published + error.unknown
    assert BatchPublishError(*error.args).published == error.published  # for pickle


@pytest.mark.parametrize(("setting", "options"), [(False, {}), (True, {"retry": False})])
def test_without_retries_a_lost_reply_is_an_error_at_once(
    new_shop: NewShop, lose_replies: Callable[[int], None], setting: bool, options: dict[str, Any]
) -> None:
    shop = new_shop({"task_publish_retry": setting, "broker_transport_options": {"retry_on_timeout": False}})
    shop.sell.delay(0)
    lose_replies(1)  # a retry would succeed
    shop.fail("1 perhaps published", shop.sell.s(1).set(**options))


@pytest.mark.parametrize("options", [{}, {"retry": True}])
def test_one_call_with_retries_is_enough_for_retries(
    new_shop: NewShop, lose_replies: Callable[[int], None], options: dict[str, Any]
) -> None:
    shop = new_shop({"task_publish_retry": not options})
    shop.sell.delay(0)
    lose_replies(1)
    shop.publish(shop.sell.s(1).set(retry=False), shop.sell.s(2).set(**options))
    assert len(shop.messages()) == 3


# --- The outbox ---


def test_outbox_tasks_alone_are_tried_once(new_shop: NewShop, other_redis: RedisServer, round_trips: list[str]) -> None:
    """Each try on a broker that is frozen takes a time-out."""
    shop = new_shop({"broker_url": other_redis.url})
    shop.charge.delay(0)
    with other_redis.frozen():
        chord([shop.charge.s(number) for number in range(4)], shop.charge.s()).apply_async()
    script = PUBLISH.sha
    (tried,) = [number for number, sent in enumerate(round_trips) if script in sent]
    assert not [sent for sent in round_trips[tried:] if "HELLO" in sent], "a new connection for another try"
    assert shop.app.durable.outbox.size() == 5


def test_outbox_tasks_are_written_and_published(shop: Shop) -> None:
    with shop.batch():
        shop.charge.apply_async((1,), task_id="a")
        shop.charge.apply_async((2,), task_id="b", later=True)
    assert sorted(shop.client.hkeys("celery-durable:outbox")) == ["a", "b"]
    assert [(each["headers"]["id"], each["headers"][PUBLICATION]) for each in shop.messages()] == [("a", 1)]
    assert shop.client.zscore("celery-durable:outbox:due", "b") == 0
    shop.run_all()
    assert shop.sold == [1]


def test_another_call_with_the_same_id_has_the_next_number(new_shop: NewShop) -> None:
    expiring = Queue("expiring", queue_arguments={"x-expires": 60_000})
    shop = new_shop({"task_queues": [Queue(QUEUE), expiring]}, transport="atomic")
    shop.charge.apply_async((1,), task_id="a")
    with shop.batch():
        shop.charge.apply_async((1,), task_id="a")
        shop.charge.apply_async((1,), task_id="a", countdown=3600)
        shop.charge.apply_async((1,), task_id="a", queue="expiring")
    assert [each["headers"][PUBLICATION] for each in [*shop.messages(), *shop.messages("expiring")]] == [1, 2, 4]
    (member,) = shop.client.zrange("celery-durable:delayed:celery", 0, -1)
    assert json.loads(member.split("\0")[-1])["headers"][PUBLICATION] == 3


@pytest.mark.parametrize("connected", [True, False])
def test_without_a_broker_the_outbox_has_its_tasks(
    new_shop: NewShop, other_redis: RedisServer, connected: bool
) -> None:
    shop = new_shop({"broker_url": other_redis.url})
    if connected:
        shop.sell.delay(0)
    with other_redis.stopped():
        shop.publish(shop.charge.s(1).set(task_id="a"))
        assert shop.client.zscore("celery-durable:outbox:due", "a") == 0
        with pytest.raises(OperationalError, match=r"Connection refused|1 tasks not published"):
            shop.publish(shop.sell.s(1))
    assert shop.app.durable.reconcile()["published"] == 1
    with other_redis.client as broker:
        assert broker.llen(QUEUE) == 1


def test_without_the_store_nothing_is_published(new_shop: NewShop, other_redis: RedisServer) -> None:
    shop = new_shop(store=other_redis.url)
    calls = shop.sell.s(1).set(task_id="a"), shop.charge.s(1).set(task_id="b")
    with other_redis.stopped():
        error = shop.fail("1 tasks not published, 1 perhaps published", *calls)
    assert (list(error.refused), error.unknown) == (["a"], ["b"])
    assert shop.messages() == []
