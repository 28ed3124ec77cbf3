"""The transport: a message taken from a queue is returned to it, settled once, or dead-lettered unchanged."""

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from kombu import Connection, Consumer, Exchange, Queue
from redis import ConnectionError as RedisConnectionError
from redis import RedisError

from celery_durable.dead_letters import Letter, Reason
from celery_durable.transport import Channel

from .conftest import NewApp
from .poll import poll_until
from .project import SHORT
from .redis_server import RedisServer

EVENTS = Exchange("events", "topic")
QUEUES = [
    Queue("plain"),
    Queue("bound", Exchange("direct"), routing_key="by a key"),
    Queue("one", EVENTS, routing_key="a.#"),
    Queue("two", EVENTS, routing_key="#"),
]


class Taker:
    """Takes as many messages as a worker does, and no more until they are settled."""

    def __init__(self, connection: Any, *queues: Queue, number: int = 1, no_ack: bool = False) -> None:
        self.connection, self.number = connection, number
        self.taken: list[Any] = []
        self.channel = connection.default_channel
        self.channel.basic_qos(0, number, False)
        self.consumer = Consumer(self.channel, list(queues), no_ack=no_ack, on_message=self.taken.append)
        self.consumer.consume()

    def take(self) -> list[Any]:
        deadline = time.monotonic() + 20
        while len(self.taken) < self.number and time.monotonic() < deadline:
            with suppress(socket.timeout):
                self.connection.drain_events(timeout=1)
        taken, self.taken[:] = list(self.taken), []
        assert len(taken) == self.number
        return taken

    def one(self) -> Any:
        (message,) = self.take()
        return message


@contextmanager
def taking(app: Any, *queues: Queue, **options: Any) -> Iterator[Taker]:
    with app.connection_for_read() as connection:
        yield Taker(connection, *queues, **options)


def publish(app: Any, queue: Queue, routing_key: str | None = None, **options: Any) -> None:
    with app.connection_for_write() as connection, connection.Producer() as producer:
        producer.publish(
            {"a": 1},
            exchange=queue.exchange,
            routing_key=routing_key or queue.routing_key or queue.name,
            declare=[*QUEUES, queue],
            **options,
        )


def letters(app: Any) -> list[Letter]:
    with app.durable.raw_broker() as client:
        return list(app.durable.dead_letters.read(client))


def waiting(app: Any, client: Any) -> dict[str, int]:
    """The number of waiting messages of each queue that is not empty."""
    depths = {queue.name: sum(client.llen(name) for name in app.durable.priority_lists(queue.name)) for queue in QUEUES}
    return {name: depth for name, depth in depths.items() if depth}


@pytest.fixture(params=["stock", "atomic"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def app(new_app: NewApp, transport: str) -> Any:
    return new_app({"task_queues": QUEUES, "task_default_queue": "plain"}, transport=transport)


# --- Back to its queue ---


def test_a_returned_message_has_the_time_since_when_it_waits(app: Any) -> None:
    publish(app, QUEUES[0])
    with taking(app, QUEUES[0]) as taker:
        message = taker.one()
        assert "redelivered_at" not in message.headers
        before = time.time()
        message.requeue()
        again = taker.one()
        assert before <= again.headers["redelivered_at"] <= time.time()
        assert again.headers["redelivered"] is True


def requeue(message: Any) -> None:
    message.requeue()


def put_back(message: Any) -> None:
    message.channel.put_back(message, unknown_for=1.0)


def close(message: Any) -> None:
    """The worker stops."""
    message.channel.close()


def time_out(message: Any) -> None:
    """The worker was killed, and another one restores the messages that it held."""
    channel = message.channel
    leases = getattr(channel.connection, "_leases", None)
    if leases:
        leases.stop()
    with channel.raw_client() as client:
        for tag, _ in client.zscan_iter(channel.unacked_index_key):
            client.zadd(channel.unacked_index_key, {tag: 1})
        client.hset("celery-durable:leases", mapping={"seen": client.time()[0], "hold": 0})
    if leases:
        leases._give_back_lapsed()
    channel.qos.restore_visible(num=None, interval=1)


@pytest.mark.parametrize("back", [requeue, put_back, close, time_out])
@pytest.mark.parametrize(("queue", "routing_key"), [(QUEUES[0], None), (QUEUES[1], None), (QUEUES[2], "a.b")])
def test_it_goes_back_to_the_queue_that_it_came_from_and_to_no_other(
    app: Any, client: Any, queue: Queue, routing_key: str | None, back: Callable[[Any], None]
) -> None:
    """Its routing key is not that queue's name, and also matches another queue."""
    publish(app, queue, routing_key, priority=6)
    assert waiting(app, client) == ({"one": 1, "two": 1} if queue.name == "one" else {queue.name: 1})
    with taking(app, queue) as taker:
        message = taker.one()
        client.delete(*app.durable.priority_lists("two"))
        back(message)
        assert waiting(app, client) == {queue.name: 1}
        assert client.llen(f"{queue.name}\x06\x166") == 1
        assert not client.exists("unacked", "unacked_index")
    with taking(app, queue) as taker:
        assert taker.one().payload == {"a": 1}


def test_the_copies_of_a_topic_are_settled_each(app: Any, client: Any) -> None:
    """kombu gives both the same delivery tag, so settling one removed the other."""
    publish(app, QUEUES[2], "a.b")
    with taking(app, QUEUES[2], QUEUES[3], number=2) as taker:
        one, two = taker.take()
        assert client.hlen("unacked") == 2
        one.ack()
        assert client.hlen("unacked") == 1
        time_out(two)
        assert waiting(app, client) == {two.delivery_info["queue"]: 1}


def test_a_late_worker_does_not_settle_a_message_that_another_one_holds(app: Any, client: Any) -> None:
    publish(app, QUEUES[0])
    with taking(app, QUEUES[0]) as frozen, taking(app, QUEUES[0]) as other:
        first = frozen.one()
        time_out(first)
        other.one()
        first.ack()
        assert client.hlen("unacked") == client.zcard("unacked_index") == 1


@pytest.mark.parametrize("transport", ["stock"])
def test_a_renewed_message_is_not_returned_to_its_queue(app: Any, client: Any) -> None:
    publish(app, QUEUES[0])
    with taking(app, QUEUES[0]) as taker:
        message = taker.one()
        client.zadd("unacked_index", {message.delivery_tag: 1})
        taker.channel.qos.renew([message.delivery_tag, "gone"])
        taker.channel.qos.restore_visible(num=None, interval=1)
        assert client.hlen("unacked") == 1
        assert client.zrange("unacked_index", 0, -1) == [message.delivery_tag]
        assert client.zscore("unacked_index", message.delivery_tag) == pytest.approx(time.time(), abs=10)


@pytest.mark.parametrize("transport", ["stock"])
def test_a_worker_that_died_while_it_returned_messages_blocks_the_others_only_briefly(app: Any, client: Any) -> None:
    publish(app, QUEUES[0])
    with taking(app, QUEUES[0]) as taker:
        qos, tag = taker.channel.qos, taker.one().delivery_tag
        client.zadd("unacked_index", {tag: 1})
        assert client.lock(qos.unacked_mutex_key, timeout=qos.unacked_mutex_expire).acquire(blocking=False)
        qos.restore_visible(num=None, interval=1)
        assert waiting(app, client) == {}

        def returned() -> bool:
            qos.restore_visible(num=None, interval=1)
            return waiting(app, client) == {"plain": 1}

        poll_until(returned, "the message to return to its queue", 10)


def test_a_message_returned_by_another_process_is_not_returned_again(app: Any, client: Any) -> None:
    publish(app, QUEUES[0])
    with taking(app, QUEUES[0]) as taker:
        message = taker.one()
        time_out(message)
        put_back(message)
        assert waiting(app, client) == {"plain": 1}


def test_a_stock_worker_returns_what_ours_held(app: Any, client: Any, redis_server: RedisServer) -> None:
    publish(app, QUEUES[2], "a.b")
    with taking(app, QUEUES[2]) as taker:
        taker.one()
        client.delete("two")
        client.zadd("unacked_index", dict.fromkeys(client.zrange("unacked_index", 0, -1), 1))
        with Connection(redis_server.url) as stock:
            stock.default_channel.qos.restore_visible(num=None, interval=1)
        assert waiting(app, client) == {"one": 1}


# --- Lost connections ---


@pytest.mark.parametrize("transport", ["stock"])
@pytest.mark.parametrize("stored", [False, True])
def test_a_message_that_was_taken_and_not_stored_returns_to_its_queue(
    app: Any, client: Any, monkeypatch: pytest.MonkeyPatch, stored: bool
) -> None:
    """`stored`: it was, but the reply was lost."""
    publish(app, QUEUES[0])
    original = client.lrange("plain", 0, -1)
    append = Channel.QoS.append

    def interrupted(*args: Any) -> None:
        if stored:
            append(*args)
        raise RedisConnectionError("the broker stops")

    with monkeypatch.context() as patched, taking(app, QUEUES[0]) as taker:
        patched.setattr(Channel.QoS, "append", interrupted)
        with pytest.raises(RedisConnectionError):
            taker.one()
        taker.channel.qos._delivered.clear()  # as if the connection could return nothing
    with taking(app, QUEUES[1]):
        assert client.lrange("plain", 0, -1) == original
        assert not client.exists("unacked", "unacked_index")


@pytest.mark.parametrize("transport", ["stock"])
def test_a_message_that_a_full_broker_does_not_store_returns_to_its_queue(app: Any, client: Any) -> None:
    """Also while it is still full."""
    publish(app, QUEUES[0])
    original = client.lrange("plain", 0, -1)
    with taking(app, QUEUES[0]) as taker, taking(app, QUEUES[1]) as other:
        client.config_set("maxmemory", 1)
        with pytest.raises(RedisError):
            taker.one()
        assert client.lrange("plain", 0, -1) == []
        other.channel.basic_consume("bound", False, None, "another")
        assert client.lrange("plain", 0, -1) == original


def test_a_channel_whose_connection_is_lost_returns_what_it_held(app: Any, client: Any) -> None:
    """kombu's channel then reads the address of a missing connection: AttributeError 'hostname'."""
    publish(app, QUEUES[0])
    connection = app.connection_for_read()
    taker = Taker(connection, QUEUES[0])
    taker.one()
    channel = taker.channel
    transport = connection.transport
    channel._disconnect_pools()
    transport.client = None
    channel.close()
    assert waiting(app, client) == {"plain": 1}


def test_an_unreachable_broker_when_a_connection_is_closed_is_no_error(
    app: Any, client: Any, redis_server: RedisServer
) -> None:
    publish(app, QUEUES[0])
    connection = app.connection_for_read()
    Taker(connection, QUEUES[0]).one()
    with redis_server.stopped():
        with suppress(connection.connection_errors):
            connection.release()
        with suppress(connection.connection_errors):
            connection.collect(socket_timeout=1)


# --- Dead letters ---

NOT_JSON = [b"}{", b"\xff\xfe", b"", b"7", b"[]", b"null", b'"text"', b"{}", b'{"properties": {}}', b"{" * 5000]


@pytest.mark.parametrize("payload", NOT_JSON, ids=lambda payload: str(payload[:20]))
@pytest.mark.parametrize("no_ack", [False, True], ids=["acks", "no acks"])
def test_what_cannot_be_read_becomes_a_dead_letter_byte_for_byte(
    app: Any, client: Any, payload: bytes, no_ack: bool
) -> None:
    client.lpush("bound\x06\x163", payload)
    publish(app, QUEUES[1], priority=9)
    with taking(app, QUEUES[1], no_ack=no_ack) as taker:
        assert taker.one().payload == {"a": 1}, "the next one is taken"
    (letter,) = letters(app)
    assert (letter.reason, letter.queue, letter.payload, letter.whole) == (Reason.MALFORMED, "bound", payload, True)
    assert letter.error


def test_what_is_rejected_becomes_a_dead_letter_byte_for_byte(app: Any, client: Any) -> None:
    """With the spaces, escapes and key order of its publisher."""
    publish(app, QUEUES[1])
    (text,) = client.lrange("bound", 0, -1)
    written = json.dumps({**json.loads(text), "z": "\u2603", "a": [1.0, 1e2]}, ensure_ascii=False, indent=3).encode()
    client.delete("bound")
    client.lpush("bound", written)
    with taking(app, QUEUES[1]) as taker:
        message = taker.one()
        message.dead = (Reason.RETRIES_EXHAUSTED, "because")
        message.reject()
        assert not client.exists("unacked", "unacked_index")
    (letter,) = letters(app)
    assert (letter.reason, letter.error, letter.queue) == (Reason.RETRIES_EXHAUSTED, "because", "bound")
    assert letter.payload == written


def test_a_message_whose_reason_is_not_known_was_rejected(app: Any) -> None:
    publish(app, QUEUES[0])
    with taking(app, QUEUES[0]) as taker:
        taker.one().reject()
    assert [letter.reason for letter in letters(app)] == [Reason.REJECTED]


def test_what_has_gone_back_meanwhile_is_no_dead_letter(app: Any, client: Any) -> None:
    publish(app, QUEUES[0])
    with taking(app, QUEUES[0]) as taker:
        message = taker.one()
        time_out(message)
        message.reject()
    assert letters(app) == []
    assert waiting(app, client) == {"plain": 1}


def test_what_is_too_large_becomes_a_dead_letter(new_app: NewApp, client: Any) -> None:
    app = new_app({"task_queues": QUEUES, "task_default_queue": "plain"}, max_message_bytes=2000)
    client.lpush("plain", "x" * 2001)
    publish(app, QUEUES[0], priority=9)
    with taking(app, QUEUES[0]) as taker:
        taker.one()
    (letter,) = letters(app)
    assert (letter.reason, letter.error, letter.size) == (Reason.TOO_LARGE, "TooLargeError: 2001 bytes", 2001)
    assert letter.payload == b"x" * 2001


class CallbackError(Exception):
    """An error of a consumer."""


@pytest.mark.parametrize("whose", ["stock", "ours"])
@pytest.mark.parametrize("no_ack", [False, True], ids=["acks", "no acks"])
@pytest.mark.parametrize("error", [CallbackError, KeyError, ValueError])
def test_an_error_of_a_consumers_callback_is_its_own(
    app: Any, redis_server: RedisServer, whose: str, no_ack: bool, error: type[Exception]
) -> None:
    publish(app, QUEUES[0])
    connection = app.connection_for_read() if whose == "ours" else Connection(redis_server.url)

    def fail(message: Any) -> None:
        raise error("of mine")

    with connection:
        Taker(connection, QUEUES[0], no_ack=no_ack).consumer.on_message = fail
        with pytest.raises(error, match="of mine"):
            connection.drain_events(timeout=20)
    assert letters(app) == []


def test_without_dead_letters_what_cannot_be_read_is_thrown_away(
    new_app: NewApp, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    app = new_app({"task_queues": QUEUES, "task_default_queue": "plain"}, dead_letters=False)
    client.lpush("plain", b"}{")
    publish(app, QUEUES[0], priority=9)
    with taking(app, QUEUES[0]) as taker:
        taker.one().reject()
        assert not client.exists("unacked", "unacked_index")
    assert letters(app) == []
    assert "a message of queue plain was discarded: malformed" in caplog.text


# --- Prefix, separator, steps ---

OWN = {"global_keyprefix": "mine:", "sep": "|", "priority_steps": [0, 5, 9], "unacked_key": "held"}


@pytest.mark.parametrize("back", [requeue, put_back, close])
def test_names_of_ones_own(new_app: NewApp, client: Any, back: Callable[[Any], None]) -> None:
    app = new_app(
        {"task_queues": QUEUES, "task_default_queue": "plain", "broker_transport_options": OWN}, store=NOWHERE
    )
    publish(app, QUEUES[1], priority=7)
    client.lpush("mine:bound", b"}{")
    assert client.llen("mine:bound|5") == 1
    with taking(app, QUEUES[1]) as taker:
        message = taker.one()
        assert client.hlen("mine:held") == 1
        client.zadd("mine:unacked_index", {message.delivery_tag: 1})
        taker.channel.qos.renew([message.delivery_tag])
        assert client.zscore("mine:unacked_index", message.delivery_tag) > 1
        back(message)
        assert client.llen("mine:bound|5") == 1
    with taking(app, QUEUES[1]) as taker:
        taker.one().reject()
    assert [letter.queue for letter in letters(app)] == ["bound", "bound"]
    assert [key for key in client.scan_iter() if not key.startswith("mine:")] == []
    assert client.exists("mine:celery-durable:dead-letters")


NOWHERE = "redis://127.0.0.1:1/0"


def test_the_methods_of_kombu_that_the_library_overrides_exist(app: Any) -> None:
    """Attributes and signatures of kombu that the library depends on."""
    for name in ("unacked_key", "unacked_index_key", "sep", "priority_steps", "global_keyprefix", "_brpop_read"):
        assert hasattr(Channel, name)
    assert SHORT["visibility_timeout"] == app.connection_for_read().default_channel.visibility_timeout
