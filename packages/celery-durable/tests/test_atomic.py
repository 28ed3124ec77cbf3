"""The atomic transport: each message is in its queue, delayed, or booked for a worker that renews it."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from select import select
from threading import Thread
from typing import Any
from unittest.mock import Mock

import pytest
from kombu import Consumer, Queue
from kombu.asynchronous import Hub

from celery_durable.atomic import delays
from celery_durable.atomic.ahead import Ahead
from celery_durable.atomic.fetching import Fetched, State
from celery_durable.atomic.leases import TAG_PREFIX
from celery_durable.atomic.scripts import DUE, FETCH, LAPSED
from celery_durable.dead_letters import Reason
from celery_durable.signals import operation_fenced

from .conftest import NewApp
from .poll import poll_until
from .redis_server import RedisServer
from .test_transport import QUEUES, Taker, letters, publish, taking, time_out, waiting

LEASE: dict[str, Any] = {"transport": "atomic", "lease": 5, "lease_renewal": 1}
PLAIN = QUEUES[0]


@pytest.fixture
def app(new_app: NewApp) -> Any:
    conf = {"task_queues": QUEUES, "task_default_queue": "plain"}
    return new_app(
        {**conf, "broker_transport_options": {"priority_steps": list(range(10))}},
        **LEASE,
    )


def held(client: Any) -> dict[str, list[Any]]:
    """What workers hold, as kombu's own transport stores it."""
    assert set(client.hkeys("unacked")) == set(client.zrange("unacked_index", 0, -1))
    return {tag: json.loads(value) for tag, value in client.hgetall("unacked").items()}


# --- Taking ---


def test_a_message_is_booked_as_kombu_does_it(app: Any, client: Any) -> None:
    publish(app, PLAIN)
    (raw,) = client.lrange("plain", 0, -1)
    with taking(app, PLAIN) as taker:
        message = taker.one()
        assert held(client) == {message.delivery_tag: [json.loads(raw), "", "plain"]}
        message.ack()
        assert held(client) == {}


@pytest.mark.parametrize("most", [1, 4, 40])
def test_the_most_urgent_first_then_the_oldest_and_queues_in_turn(app: Any, most: int) -> None:
    queues = [PLAIN, QUEUES[1]]
    for number in range(40):
        for queue in queues:
            publish(app, queue, priority=number % 10, headers={"number": number})
    taken: list[Any] = []
    with taking(app, *queues, number=most) as taker:
        while len(taken) < 80:
            found = taker.take()
            taken += found
            for message in found:
                message.ack()
    for queue in queues:
        mine = [message for message in taken if message.delivery_info["queue"] == queue.name]
        order = [(message.properties["priority"], message.headers["number"]) for message in mine]
        assert order == sorted(order)
    priorities = [message.properties["priority"] for message in taken]
    assert priorities == sorted(priorities)
    names = [message.delivery_info["queue"] for message in taken]
    pairs = zip(names[::2], names[1::2], strict=True)
    assert all(set(pair) == {queue.name for queue in queues} for pair in pairs), names


def test_no_more_are_taken_than_the_consumer_wants(app: Any, client: Any) -> None:
    for _ in range(5):
        publish(app, PLAIN)
    with taking(app, PLAIN, number=2) as taker:
        taker.take()
        with suppress(TimeoutError):
            taker.connection.drain_events(timeout=0.5)
        assert taker.taken == []
        assert len(held(client)) == 2
        assert waiting(app, client) == {"plain": 3}
    assert waiting(app, client) == {"plain": 5}


@pytest.mark.parametrize(("strategy", "order"), [("priority", ["q1", "q2"]), ("sorted", ["plain", "q1"])])
def test_queues_in_the_configured_order(new_app: NewApp, client: Any, strategy: str, order: list[str]) -> None:
    options = {"priority_steps": list(range(10)), "queue_order_strategy": strategy}
    names = dict.fromkeys(["q2", *order, "plain"])
    queues = {name: Queue(name) for name in names}
    app = new_app({"task_queues": [*queues.values()], "broker_transport_options": options}, **LEASE)
    for number in range(6):
        for name in order:
            publish(app, queues[name], priority=number % 2, headers={"number": number})
    with taking(app, *(queues[name] for name in order), number=12) as taker:
        found = taker.take()
    expected = [(priority, name) for priority in (0, 1) for name in order for _ in range(3)]
    assert [(each.properties["priority"], each.delivery_info["queue"]) for each in found] == expected


def test_as_many_are_read_ahead_as_were_handed_over_in_5_ms(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("celery_durable.atomic.ahead.monotonic", lambda: now)
    ahead = Ahead()
    for handed_over, expected in ((0, 0), (20, 1), (200, 10), (5000, 50), (0, 0)):
        for _ in range(handed_over):
            ahead.count()
        assert ahead.number() != expected or not handed_over, "before it is measured"
        now += 0.1
        assert ahead.number() == expected


def test_an_error_of_a_callback_is_not_taken_for_an_empty_buffer(app: Any) -> None:
    def fail(message: Any) -> None:
        raise IndexError("its own")

    publish(app, PLAIN)
    with taking(app, PLAIN) as taker:
        taker.consumer.on_message = fail
        with pytest.raises(IndexError, match="its own"):
            taker.take()


def test_what_was_read_ahead_and_waits_returns_as_it_was(app: Any, client: Any) -> None:
    for number in range(5):
        publish(app, PLAIN, priority=number % 2, headers={"number": number})
    before = {name: client.lrange(name, 0, -1) for name in app.durable.priority_lists("plain")}
    with taking(app, PLAIN, number=1) as taker:
        channel, transport = taker.channel, taker.connection.transport
        transport._leases.stop()
        keys = [*channel.books, "watcher", "waiting", "wake", *app.durable.priority_lists("plain")]
        with channel.raw_client() as raw:
            arguments = [5, f"{TAG_PREFIX}x:", 0, 1, 0, "x", "wake:", 0, 0, '"plain"']
            _, _, *found = FETCH(raw, keys, arguments)
            tags = [f"{TAG_PREFIX}x:{number:012}" for number in range(5)]
            channel._buffer.extend(Fetched(tag, "plain", each) for tag, each in zip(tags, found[1::2], strict=True))
            channel._fetched_at = time.monotonic()
            channel.return_what_waits(raw)
            assert len(channel._buffer) == len(held(client)) == 5, "it may still be handed over"
            channel._fetched_at -= 1
            channel.fetcher.read = list  # tasks that take longer are acknowledged meanwhile
            channel._read_reply()
            channel.return_what_waits(raw)
            assert len(channel._buffer) == len(held(client)) == 1, "for this one there is room"
            channel._return_unread(raw, channel._buffer.pop())
        assert {name: client.lrange(name, 0, -1) for name in app.durable.priority_lists("plain")} == before


# --- In an event loop ---


class Loop:
    """A consumer in an event loop, that has read ahead."""

    def __init__(self, connection: Any, hub: Hub, ahead: int) -> None:
        self.hub, self.taken = hub, list[Any]()
        self.transport = connection.transport
        self.channel = connection.default_channel
        self.channel.basic_qos(0, 1, False)
        self.channel._ahead.number = lambda: ahead
        connection.register_with_event_loop(hub)
        Consumer(self.channel, [PLAIN], on_message=self.taken.append).consume()

    def run_until(self, condition: Callable[[], object], what: str) -> None:
        def turn() -> object:
            self.hub.run_once()
            return condition()

        poll_until(turn, what, interval=0)


@contextmanager
def in_loop(app: Any, messages: int, ahead: int) -> Iterator[Loop]:
    for number in range(messages):
        publish(app, PLAIN, headers={"number": number})
    hub = Hub()
    with app.connection_for_read() as connection:
        yield Loop(connection, hub, ahead)
    hub.close()


def test_acknowledgements_are_sent_together_while_messages_are_read_ahead(
    app: Any, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("celery_durable.atomic.channel.ACKS_WAIT", 60)
    with in_loop(app, messages=60, ahead=19) as loop:

        def next_one() -> bool:
            """As the prefork pool: a task has ended, which is an event."""
            for message in loop.taken:
                message.ack()
                loop.transport.wake()
            done.extend(loop.taken)
            loop.taken.clear()
            return len(done) == 60

        done: list[Any] = []
        send = Mock(side_effect=loop.channel.fetcher._send)
        loop.channel.fetcher._send = send
        loop.run_until(next_one, "60 messages")
        loop.run_until(lambda: not held(client), "all to be acknowledged")
        assert send.call_count < 12


def test_an_acknowledgement_does_not_wait_for_a_long_task(app: Any, client: Any) -> None:
    with in_loop(app, messages=3, ahead=2) as loop:
        loop.run_until(lambda: loop.taken, "a message")
        first = loop.taken[0]
        first.ack()
        loop.run_until(lambda: len(loop.taken) == 2, "the next message")
        loop.run_until(lambda: first.delivery_tag not in held(client), "the first to be acknowledged")
        assert loop.channel.has_unread


def test_a_message_that_is_handed_over_late_in_a_turn_does_not_wait_for_the_next_event(app: Any) -> None:
    """The part of the prefork pool, which writes it to a child process, may have been before."""
    with in_loop(app, messages=2, ahead=1) as loop:
        loop.run_until(lambda: loop.taken, "a message")
        loop.transport._on_wake()
        loop.channel.basic_qos(0, 2, False)
        loop.channel.pump()
        assert len(loop.taken) == 2
        assert select([loop.transport._wake[0]], [], [], 0)[0]


def test_after_a_task_the_next_message_is_handed_over_before_the_part_of_the_pool(app: Any) -> None:
    with in_loop(app, messages=2, ahead=1) as loop:
        loop.run_until(lambda: loop.taken, "a message")
        loop.hub.on_tick.clear()
        in_tick: list[int] = []
        loop.hub.on_tick.add(lambda: in_tick.append(len(loop.taken)))
        loop.taken[0].ack()
        loop.channel.deliver_soon()
        loop.hub.run_once()
        assert in_tick == [2]


def test_an_error_while_handing_over_is_raised_by_the_loop_and_ends_nothing_else(app: Any) -> None:
    with in_loop(app, messages=2, ahead=1) as loop:
        loop.run_until(lambda: loop.taken, "a message")
        loop.taken[0].ack()
        loop.channel._consuming["plain"] = False, Mock(side_effect=OSError("broken"))
        loop.channel.deliver_soon()
        loop.hub.call_soon(called := Mock())
        with pytest.raises(OSError, match="broken"):
            loop.hub.run_once()
        called.assert_called_once_with()


def test_without_its_loop_a_channel_acknowledges_at_once_and_returns_what_it_read_ahead(
    app: Any, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("celery_durable.atomic.channel.ACKS_WAIT", 60)
    with in_loop(app, messages=6, ahead=3) as loop:
        loop.run_until(lambda: loop.taken, "a message")
        first = loop.taken.pop()
        first.ack()
        loop.run_until(lambda: loop.taken, "the next message")
        assert set(held(client)) == {first.delivery_tag, *loop.channel.held()}
        assert loop.channel.has_unread
        (second,) = loop.taken
        loop.channel.stop_taking(running={second.delivery_tag})
        assert list(held(client)) == [second.delivery_tag]
        assert waiting(app, client) == {"plain": 4}
        second.ack()
        assert held(client) == {}
        loop.channel.pump()
        assert waiting(app, client) == {"plain": 4}


def test_without_its_loop_a_channel_returns_what_does_not_run_in_its_old_order(app: Any, client: Any) -> None:
    with in_loop(app, messages=6, ahead=3) as loop:
        loop.run_until(lambda: loop.taken, "a message")
        assert loop.channel.has_unread
        loop.channel.stop_taking(running=())
        assert held(client) == {}
        back = [json.loads(each)["headers"]["number"] for each in reversed(client.lrange("plain", 0, -1))]
        assert back == list(range(6))


def test_a_connection_is_added_once_to_the_event_loop(app: Any, client: Any) -> None:
    with in_loop(app, messages=1, ahead=0) as loop:
        loop.run_until(lambda: loop.taken, "a message")
        cycle = loop.transport.cycle
        assert cycle.fds == {}
        ((fd, watched),) = cycle._fd_to_chan.items()
        (key,) = cycle._chan_to_sock
        cycle._chan_to_sock[key] = Mock(fileno=lambda: fd)  # another connection has got its number
        assert cycle.fds == {fd: watched}
        assert cycle.fds == {}
        loop.hub.remove_reader(fd)
        assert cycle.fds == {fd: watched}


def test_a_lost_connection_is_replaced_in_the_event_loop(app: Any, client: Any) -> None:
    with in_loop(app, messages=1, ahead=0) as loop:
        loop.run_until(lambda: loop.taken, "a message")
        loop.channel.client.connection.disconnect()
        publish(app, PLAIN)
        loop.taken[0].ack()
        loop.run_until(lambda: len(loop.taken) == 2, "a message over the next connection")


def test_what_was_held_at_the_end_is_next_in_its_old_order(app: Any) -> None:
    for number in range(5):
        publish(app, PLAIN, headers={"number": number})
    with taking(app, PLAIN, number=3) as taker:
        taker.take()
    with taking(app, PLAIN, number=5) as taker:
        assert [message.headers["number"] for message in taker.take()] == [0, 1, 2, 3, 4]


def test_a_message_is_taken_from_a_full_redis(app: Any, client: Any) -> None:
    """Taking it is what makes room."""
    publish(app, PLAIN, headers={"filler": "x" * 100_000})
    with taking(app, PLAIN) as taker:
        client.config_set("maxmemory", 1)
        taker.one().ack()
        assert held(client) == {}


def test_get_books_a_message_too(app: Any, client: Any) -> None:
    publish(app, PLAIN)
    with app.connection_for_read() as connection:
        message = connection.default_channel.basic_get("plain")
        assert list(held(client)) == [message.delivery_tag]
        connection.default_channel.basic_ack(message.delivery_tag)
        assert held(client) == {}
        assert connection.default_channel.basic_get("plain") is None


def test_large_messages_are_taken_in_parts(app: Any, client: Any) -> None:
    for number in range(40):
        publish(app, PLAIN, headers={"number": number, "filler": "x" * 300_000})
    keys = ["unacked", "unacked_index", "watcher", "waiting", "wake", "plain"]
    with app.durable.raw_broker() as raw:
        late, role, *found = FETCH(raw, keys, [40, f"{TAG_PREFIX}x:", 0, 1, 0, "x", "wake:", 1, 0, '"plain"'])
        assert (late, role) == (0, 0), "call again"
        assert 4 << 20 <= sum(map(len, found[1::2])) <= 7 << 20
        assert client.llen("plain") + client.hlen("unacked") == 40
        keys.append("another")
        late, role, *found = FETCH(
            raw, keys, [40, f"{TAG_PREFIX}y:", 0, 2, 1, "x", "wake:", 1, 0, '"plain"', '"another"']
        )
        assert 4 << 20 <= sum(map(len, found[1::2])) <= 5 << 20
    with taking(app, PLAIN, number=client.llen("plain")) as taker:
        numbers = [message.headers["number"] for message in taker.take()]
    assert numbers == sorted(numbers)


# --- Waiting ---


def wait(connection: Any) -> None:
    """Let a channel find its queue empty."""
    while connection.default_channel.fetcher.state is not State.WAITING:
        with suppress(TimeoutError):
            connection.drain_events(timeout=0.1)


@pytest.fixture
def three(app: Any) -> Iterator[list[Any]]:
    """Channels that wait for a message: the first watches the queue."""
    connections = [app.connection_for_read() for _ in range(3)]
    taken: list[Any] = []
    for connection in connections:
        connection.default_channel.basic_qos(0, 1, False)
        Consumer(connection.default_channel, [PLAIN], on_message=taken.append).consume()
        wait(connection)
    yield connections
    for connection in connections:
        connection.release()


def told(connections: list[Any]) -> list[int]:
    """Which of the waiting connections Redis has told of a change."""
    return [
        number
        for number, connection in enumerate(connections)
        if connection.default_channel.client.connection.can_read(timeout=0.3)
    ]


def test_a_message_wakes_one_worker_and_the_watch_is_handed_on(app: Any, three: list[Any], client: Any) -> None:
    assert told(three) == []
    publish(app, PLAIN)
    assert told(three) == [0]
    while not held(client):
        with suppress(TimeoutError):
            three[0].drain_events(timeout=1)
    (other,) = set(told(three)) - {0}
    three[other].default_channel.fetcher.consumers_changed()  # what the notification does
    wait(three[other])  # it finds nothing, and watches from now on
    assert told(three) == []
    publish(app, PLAIN)
    assert told(three) == [other]


def test_a_worker_waits_no_longer_than_the_watch_of_a_killed_one(app: Any, three: list[Any]) -> None:
    """Which is not told, since nobody reads its connection."""
    three[0].transport.cycle.close()
    publish(app, PLAIN)
    began = time.monotonic()
    channel = three[1].default_channel
    while not channel.qos.held():
        with suppress(TimeoutError):
            three[1].drain_events(timeout=0.5)
        assert time.monotonic() - began < 20


# --- Connections ---


def test_it_continues_after_the_scripts_are_gone(app: Any, redis_server: RedisServer) -> None:
    with taking(app, PLAIN) as taker:
        for _ in range(2):
            publish(app, PLAIN)
            taker.one().ack()
            redis_server.client.script_flush()


def test_an_acknowledgement_that_was_lost_with_its_connection_is_sent_again(app: Any, client: Any) -> None:
    publish(app, PLAIN)
    with taking(app, PLAIN) as taker:
        message = taker.one()
        qos = taker.channel.qos
        qos._acks.append(message.delivery_tag)
        qos.send(10)
        taker.channel.fetcher.reset()
        assert len(held(client)) == 1
        qos.send_all()
        assert held(client) == {}


def test_an_acknowledgement_while_redis_is_down_is_sent_with_the_next_connection(
    app: Any, client: Any, redis_server: RedisServer
) -> None:
    """As in a worker with threads, whose tasks end while it reconnects."""
    for _ in range(2):
        publish(app, PLAIN)
    connection = app.connection_for_read()
    early, late = Taker(connection, PLAIN, number=2).take()
    redis_server.kill()
    try:
        early.channel.qos._acks.append(early.delivery_tag)  # waits for the next fetch
        with suppress(*connection.connection_errors):
            connection.release()
        late.ack()
    finally:
        redis_server.start()
    assert len(held(client)) == 2
    with taking(app, QUEUES[1]) as taker:
        while held(client):
            with suppress(TimeoutError):
                taker.connection.drain_events(timeout=0.1)
    assert waiting(app, client) == {}


# --- Leases ---


def test_what_a_live_worker_holds_is_not_given_to_another(app: Any, client: Any) -> None:
    publish(app, PLAIN)
    with taking(app, PLAIN) as taker, taking(app, PLAIN) as other:
        message = taker.one()
        until = time.monotonic() + 3 * LEASE["lease"]
        while time.monotonic() < until:
            with suppress(TimeoutError):
                other.connection.drain_events(timeout=0.3)
            assert list(held(client)) == [message.delivery_tag]


def test_what_is_no_longer_renewed_is_redelivered_and_a_late_acknowledgement_changes_nothing(
    app: Any, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    publish(app, PLAIN, headers={"id": "a"})
    with taking(app, PLAIN) as frozen, taking(app, PLAIN) as other:
        message = frozen.one()
        frozen.connection.transport._leases.stop()
        again = other.one()
        assert again.headers["deliveries"] == 2
        assert again.headers["redelivered"] is True
        assert again.delivery_tag != message.delivery_tag
        message.ack()
        assert "acknowledge: too late for 1 messages" in caplog.text
        assert list(held(client)) == [again.delivery_tag]


def test_what_a_killed_worker_held_is_next_in_its_old_order(app: Any, client: Any) -> None:
    held_by_it = 120  # more than are returned at once
    for number in range(held_by_it):
        publish(app, PLAIN, headers={"number": number})
    with taking(app, PLAIN, number=held_by_it) as killed, taking(app, QUEUES[1]) as other:
        killed.take()
        leases = killed.connection.transport._leases
        leases._renew()
        leases.stop()
        for number in range(held_by_it, held_by_it + 5):
            publish(app, PLAIN, headers={"number": number})

        def returned() -> bool:
            with suppress(TimeoutError):
                other.connection.drain_events(timeout=0.1)
            return bool(client.llen("plain") == held_by_it + 5)

        poll_until(returned, "all to be returned", 60)
        numbers = [json.loads(raw)["headers"]["number"] for raw in client.lrange("plain", 0, -1)]
        assert numbers[::-1] == list(range(held_by_it + 5))
        killed.connection.transport.channels[0].qos._delivered.clear()


def test_operations_of_who_no_longer_holds_the_lease_are_counted(app: Any, client: Any) -> None:
    counted: list[Any] = []

    def count(sender: Any, operation: str, number: int, **_: Any) -> None:
        assert sender is app
        counted.append((operation, number))

    operation_fenced.connect(count)
    for _ in range(6):
        publish(app, PLAIN)
    with taking(app, PLAIN, number=6) as taker:
        messages = taker.take()
        leases = taker.connection.transport._leases
        leases.stop()
        leases._renew()
        assert counted == []
        client.delete("unacked", "unacked_index")  # as if they had lapsed
        leases._renew()
        messages[0].ack()
        messages[1].requeue()
        messages[2].channel.put_back(messages[2])
        messages[3].channel.delays.park(messages[3], time.time() + 100)
        messages[4].reject()
        messages[5].channel.qos.restore_unacked()
    once = ["acknowledge", "requeue", "requeue", "delay", "reject", "requeue"]
    assert counted == [("renew", 6), *[(operation, 1) for operation in once]]
    assert not client.exists("celery-durable:dead-letters")
    assert waiting(app, client) == {}
    assert not client.exists("celery-durable:delayed:plain")


def test_after_a_time_in_which_nobody_could_renew_nothing_lapses_at_once(app: Any, client: Any) -> None:
    """Redis was frozen: each worker needs some time to renew what it holds."""
    tag = f"{TAG_PREFIX}x:1"
    seconds, _ = client.time()
    client.zadd("unacked_index", {tag: seconds - 100})
    client.hset("leases", mapping={"seen": seconds - 50, "hold": 0})
    arguments = [15, 90, TAG_PREFIX, 5, 2, 10]
    assert LAPSED(client, ["unacked_index", "leases"], arguments) == []
    assert poll_until(lambda: LAPSED(client, ["unacked_index", "leases"], arguments), "it to lapse") == [tag]


def test_what_workers_of_kombus_own_transport_hold_has_their_time_out(client: Any) -> None:
    seconds, _ = client.time()
    for number in range(3000):  # more than one page
        client.zadd("unacked_index", {f"stock-{number}": seconds - 60})
    client.zadd("unacked_index", {f"{TAG_PREFIX}x:1": seconds - 30, "stock-old": seconds - 91})
    client.hset("leases", mapping={"seen": seconds, "hold": 0})
    found = LAPSED(client, ["unacked_index", "leases"], [15, 90, TAG_PREFIX, 5, 10, 10])
    assert found == [f"{TAG_PREFIX}x:1", "stock-old"]


def test_what_stock_workers_held_is_returned_by_one_process_at_a_time(app: Any, client: Any) -> None:
    """kombu uses a tag again: without its lock a second process would return what has a new holder."""
    tags = {"stock", f"{TAG_PREFIX}x:1"}
    publish(app, PLAIN)
    message = json.loads(client.rpop("plain"))
    with taking(app, QUEUES[1]) as taker:
        leases = taker.connection.transport._leases
        leases.stop()
        seconds, _ = client.time()
        client.hset("celery-durable:leases", mapping={"seen": seconds, "hold": 0})
        client.hset("unacked", mapping=dict.fromkeys(tags, json.dumps([message, "", "plain"])))
        client.zadd("unacked_index", dict.fromkeys(tags, seconds - 100))
        with client.lock("unacked_mutex", timeout=60):
            leases._give_back_lapsed()
            assert list(held(client)) == ["stock"]
        leases._give_back_lapsed()
        assert held(client) == {}
    assert client.llen("plain") == 2


def test_a_worker_that_stops_makes_nothing_of_stock_workers_a_dead_letter(app: Any, client: Any) -> None:
    """It closes its channel, which looks up the bindings that kombu stores, before it stops returning messages."""
    publish(app, PLAIN)
    message = json.loads(client.rpop("plain"))
    client.hset("unacked", "stock", json.dumps([message, "plain", "plain"]))
    client.zadd("unacked_index", {"stock": time.time()})
    with taking(app, QUEUES[1]) as taker:
        leases = taker.connection.transport._leases
        leases.stop()
        leases._channel.close()
        leases._give_back("stock")
    assert list(held(client)) == ["stock"]
    assert letters(app) == []


def test_what_keeps_losing_its_worker_becomes_a_dead_letter(app: Any, client: Any) -> None:
    """After 20 deliveries, which is the default."""
    publish(app, PLAIN)
    for _ in range(20):
        assert letters(app) == []
        with taking(app, PLAIN) as killed:
            time_out(killed.one())
    assert held(client) == {}
    (letter,) = letters(app)
    assert letter.reason == Reason.DELIVERIES
    assert letter.queue == "plain"
    assert waiting(app, client) == {}


def test_what_cannot_be_read_and_lost_its_worker_becomes_a_dead_letter(app: Any, client: Any) -> None:
    """It was taken, and its worker killed before it was read."""
    client.lpush("plain", b"}{, \xff")
    keys = ["unacked", "unacked_index", "watcher", "waiting", "wake", "plain"]
    with app.durable.raw_broker() as raw:
        FETCH(raw, keys, [1, f"{TAG_PREFIX}x:", 1, 1, 1, "x", "wake:", 0, 0, '"plain"'])
    with taking(app, QUEUES[1]):
        poll_until(lambda: letters(app), "the dead letter")
    (letter,) = letters(app)
    assert (letter.reason, letter.queue, letter.payload) == (Reason.MALFORMED, "plain", b"}{, \xff")
    assert client.hlen("unacked") == client.zcard("unacked_index") == 0


# --- Delays ---


def eta(seconds: float) -> dict[str, str]:
    """The header of a message that is due then."""
    return {"eta": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(time.time() + seconds))}


def test_a_delayed_message_waits_in_redis_and_is_delivered_by_its_time_and_priority(app: Any, client: Any) -> None:
    first, second = eta(4), eta(5)  # whole seconds: the clock may go on to the next one in between
    for number, (due, priority) in enumerate([(second, 5), (first, 5), (first, 0)]):
        publish(app, PLAIN, priority=priority, headers={**due, "number": number})
    publish(app, PLAIN, headers=eta(86_400 * 400))
    assert waiting(app, client) == {}
    assert client.zcard("celery-durable:delayed:plain") == 4
    with taking(app, PLAIN) as taker:
        taken = []
        for _ in range(3):
            message = taker.one()
            taken.append(message.headers["number"])
            message.ack()
    assert taken == [2, 1, 0]
    assert client.zcard("celery-durable:delayed:plain") == 1


def test_many_that_are_due_at_once_are_moved_at_once(app: Any, client: Any) -> None:
    """But renewing does not wait for it."""
    client.zadd("celery-durable:delayed:plain", {f"plain\0{number}\0{{}}": 1 for number in range(5200)})
    with taking(app, QUEUES[1]) as taker:
        leases = taker.connection.transport._leases
        leases.stop()
        taker.channel._consuming["plain"] = False, None
        leases._renew_at = 0
        leases._move_due()
        assert client.llen("plain") == 500
        leases._renew_at = time.monotonic() + 60
        leases._move_due()
        assert client.llen("plain") == 5200
    client.delete("plain")


def test_one_worker_calls_again_when_the_next_message_is_due(client: Any) -> None:
    """Not each one: their number must not make more work for Redis."""
    again = 60_000  # ms

    def call(caller: str) -> int:
        moved, wait = DUE(client, ["mover", "other", "delayed"], [10, caller, again])
        assert moved == 0
        return int(wait)

    now, _ = client.time()
    client.zadd("delayed", {"plain\0far\0{}": now + 86_400})
    assert call("one") == again
    assert client.keys() == ["delayed"], "one was chosen although no message is due soon"
    client.zadd("delayed", {"plain\0near\0{}": now + 50})
    assert 0 < call("one") <= 50_000
    assert call("two") == again
    assert call("one") <= 50_000
    assert again < client.pttl("mover") <= 2 * again
    client.delete("mover")  # it was killed
    assert call("two") <= 50_000
    assert call("one") == again


def test_in_a_full_redis_each_worker_looks_as_often(client: Any) -> None:
    now, _ = client.time()
    client.zadd("delayed", {"plain\0id\0{}": now + 50})
    client.config_set("maxmemory", 1)
    assert DUE(client, ["mover", "delayed"], [10, "one", 60_000]) == [0, 60_000]


def test_a_worker_looks_when_the_next_message_is_due(app: Any, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delays, "TICK", 60)
    with taking(app, QUEUES[1]) as taker:
        leases = taker.connection.transport._leases
        leases.stop()
        taker.channel._consuming["plain"] = False, None
        now, _ = client.time()
        client.zadd("celery-durable:delayed:plain", {"plain\0id\0{}": now + 3600})
        assert leases._tick() == 60
        client.zadd("celery-durable:delayed:plain", {"plain\0id\0{}": now + 50})
        assert delays.SOONEST < leases._tick() <= 50
        for due in range(now - 400, now + 1):
            client.zadd("celery-durable:delayed:plain", {f"plain\0{due}\0{{}}": due})
        leases._tick()
        assert client.llen("plain") == 401
    monkeypatch.setattr(delays, "DUE", lambda *_: [0, 1])
    wait = delays.move_due(client, app.durable.broker_key, ["plain"], "one", lambda: True)
    assert wait == delays.SOONEST, "many messages are moved together"


def test_messages_that_are_due_are_delivered_by_a_full_redis(app: Any, client: Any) -> None:
    publish(app, PLAIN, headers=eta(2))
    with taking(app, PLAIN) as taker:
        client.config_set("maxmemory", 1)
        taker.one().ack()


def test_a_purge_removes_delayed_messages(app: Any, client: Any) -> None:
    publish(app, PLAIN)
    publish(app, PLAIN, headers=eta(100))
    with app.connection_for_write() as connection:
        assert connection.default_channel.queue_purge("plain") == 2
    assert not client.exists("plain", "celery-durable:delayed:plain")


def test_two_messages_with_the_same_bytes_stay_two(app: Any, client: Any) -> None:
    """From a publisher that sends the same bytes twice: at once, and through workers that park them."""
    publish(app, PLAIN, headers=eta(100))
    (member,) = client.zrange("celery-durable:delayed:plain", 0, -1)
    raw = member.split("\0", 2)[-1]
    client.rpush("plain", raw, raw)
    with taking(app, PLAIN, number=2) as taker:
        for message in taker.take():
            assert taker.channel.delays.park(message, time.time() + 100)
        taker.channel._put("plain", json.loads(raw))
        taker.channel._put("plain", json.loads(raw))
    members = client.zrange("celery-durable:delayed:plain", 0, -1)
    assert len(members) == 5
    assert {member.split("\0", 2)[-1] for member in members} == {raw}


@pytest.mark.parametrize("bound", [True, False])
def test_a_deleted_queue_has_no_delayed_messages(app: Any, client: Any, bound: bool) -> None:
    publish(app, PLAIN, headers=eta(100))
    with app.connection_for_write() as connection:
        if bound:
            PLAIN(connection.default_channel).declare()
        connection.default_channel.queue_delete("plain", if_empty=True)
        assert client.zcard("celery-durable:delayed:plain") == 1
        connection.default_channel.queue_delete("plain")
        assert not client.exists("celery-durable:delayed:plain")


def test_a_message_that_is_due_by_the_clock_of_redis_is_not_parked(app: Any, client: Any) -> None:
    publish(app, PLAIN, headers=eta(-1))
    with taking(app, PLAIN) as taker:
        message = taker.one()
        seconds, _ = client.time()
        assert not taker.channel.delays.park(message, seconds)
        assert message.headers["eta"] is None
        assert list(held(client)) == [message.delivery_tag]
        assert taker.channel.delays.park(message, seconds + 100)
        assert held(client) == {}


def test_a_queue_that_expires_still_does_so_after_a_return(app: Any, client: Any) -> None:
    queue = Queue("expiring", expires=100)
    for back in ("requeue", "put_back"):
        publish(app, queue)
        with taking(app, queue) as taker:
            message = taker.one()
            assert not client.exists("expiring")
            assert not taker.channel.delays.park(message, time.time() + 50), "its queue may expire before"
            message.requeue() if back == "requeue" else taker.channel.put_back(message)
            assert 0 < client.pttl("expiring") <= 100_000
        client.delete("expiring")


def test_without_renewal_messages_that_are_due_are_delivered_and_leases_lapse(new_app: NewApp) -> None:
    app = new_app({"task_queues": QUEUES, "task_default_queue": "plain"}, renewal=False, **LEASE)
    publish(app, PLAIN, headers=eta(2))
    with taking(app, PLAIN) as taker, taking(app, PLAIN) as other:
        taker.one()
        assert other.one().headers["deliveries"] == 2


def test_names_of_ones_own(new_app: NewApp, client: Any) -> None:
    own = {"global_keyprefix": "mine:", "sep": "|", "priority_steps": [0, 5], "unacked_key": "held"}
    app = new_app({"task_queues": QUEUES, "broker_transport_options": own}, store="redis://127.0.0.1:1/0", **LEASE)
    publish(app, PLAIN, priority=7, headers=eta(4))
    with app.connection_for_write() as connection, connection.Producer() as producer, producer.batch(10):
        producer.publish({}, routing_key="plain", headers=eta(86_400))
    assert client.zcard("mine:celery-durable:delayed:plain") == 2
    with taking(app, PLAIN) as taker:
        message = taker.one()
        assert client.hlen("mine:held") == 1
        message.requeue()
        assert client.llen("mine:plain|5") == 1
    assert [key for key in client.scan_iter() if not key.startswith("mine:")] == []


# --- Faults that were found and mended ---


def test_a_tag_is_used_once_although_a_reply_was_lost(app: Any, client: Any) -> None:
    for _ in range(2):
        publish(app, PLAIN)
    with app.connection_for_read() as connection:
        channel = connection.default_channel
        channel.basic_qos(0, 1, False)
        Consumer(channel, [PLAIN], on_message=lambda _: None).consume()
        channel.pump()  # sends a fetch
        poll_until(lambda: len(held(client)) == 1, "the message to be booked")
        channel.client.connection.disconnect()  # its reply is lost
        with suppress(TimeoutError):
            connection.drain_events(timeout=2)
        poll_until(lambda: len(held(client)) == 2, "both to be booked, each with a tag of its own")


def test_what_is_rejected_over_a_later_connection_becomes_a_dead_letter(app: Any, client: Any) -> None:
    publish(app, PLAIN)
    with taking(app, PLAIN) as taker:
        message = taker.one()
        taker.channel.qos.let_go([message.delivery_tag])
    assert list(held(client)) == [message.delivery_tag]
    message.reject()
    assert [letter.queue for letter in letters(app)] == ["plain"]
    assert held(client) == {}


@pytest.mark.parametrize("priority", ["Infinity", "[" * 3000])
def test_one_that_cannot_be_read_does_not_keep_others_from_being_redelivered(
    app: Any, client: Any, priority: str
) -> None:
    bad = '{"headers": {}, "properties": {"priority": PRIORITY}}'.replace("PRIORITY", priority)
    good = '{"headers": {"id": "good"}, "properties": {}}'
    for number, message in enumerate((bad, good)):
        tag = f"{TAG_PREFIX}x:{number}"
        client.hset("unacked", tag, f'[{message}, "", "plain"]')
        client.zadd("unacked_index", {tag: 1 + number})
    with taking(app, QUEUES[1]):
        poll_until(lambda: not client.exists("unacked"), "both to be returned or dead-lettered", 30)
    assert any('"good"' in each for each in client.lrange("plain", 0, -1))


def test_an_event_loop_keeps_no_timer_of_a_closed_connection(app: Any) -> None:
    hub = Hub()
    with app.connection_for_read() as connection:
        connection.register_with_event_loop(hub)
        turns = connection.transport._turns
        assert not turns.canceled
    assert turns.canceled
    hub.close()


def test_a_waiting_connection_is_closed_although_redis_does_not_answer(app: Any, redis_server: RedisServer) -> None:
    connection = app.connection_for_read()
    channel = connection.default_channel
    Consumer(channel, [PLAIN], on_message=lambda _: None).consume()
    with suppress(TimeoutError):
        connection.drain_events(timeout=2)
    assert channel.fetcher.state is State.WAITING
    closing = Thread(target=connection.close, daemon=True)
    with redis_server.frozen():
        closing.start()
        poll_until(lambda: not closing.is_alive(), "the connection to be closed", 30)


def test_a_delayed_member_that_cannot_be_moved_does_not_multiply_others(app: Any, client: Any) -> None:
    client.zadd("celery-durable:delayed:bound", {'bound\0a\0{"n": 1}': 1, "no list": 2, 'bound\0b\0{"n": 2}': 3})
    with taking(app, PLAIN) as taker:
        taker.channel._consuming["bound"] = (False, None)
        poll_until(lambda: client.zcard("celery-durable:delayed:bound") == 1, "two to be moved")
        time.sleep(2)  # several more looks
    assert client.lrange("bound", 0, -1) == ['{"n": 2}', '{"n": 1}']
    assert client.zscore("celery-durable:delayed:bound", "no list") > time.time() + 30
