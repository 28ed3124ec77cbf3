"""The worker's consumer: malformed messages, and messages that it holds."""

import json
from collections.abc import Iterator
from time import monotonic
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, PropertyMock

import pytest
from celery import chain, chord, group
from celery.concurrency import solo
from celery.worker import state
from hypothesis import given
from hypothesis import strategies as st
from kombu.asynchronous.timer import Timer

from celery_durable.consumer import Consumer, PrefetchCount, check_message
from celery_durable.dead_letters import Reason
from celery_durable.messages import check_body, check_headers

from .conftest import NewApp

GOOD = {"task": "tasks.add", "id": "a"}


# --- Headers ---


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"root_id": None, "parent_id": None, "group": None, "eta": None, "expires": None, "retries": None},
        {"retries": 3, "timelimit": [60, None], "published_at": 1.5, "redelivered_at": 2, "outbox_publication": 1},
        {"timelimit": None, "stamped_headers": ["run"], "an_unknown_header": object()},
    ],
)
def test_what_celery_sends_passes(more: dict[str, Any]) -> None:
    check_headers({**GOOD, **more})


def test_an_old_protocol_has_no_task_in_its_headers() -> None:
    old = {"task": "tasks.add", "id": "a", "args": [1], "kwargs": {}}
    check_message(SimpleNamespace(headers={}, delivery_info={"routing_key": "q"}, payload=old), ())
    check_message(SimpleNamespace(headers={}, delivery_info={"routing_key": "q"}, payload=7), ())


def test_what_celery_embeds_passes(app: Any) -> None:
    @app.task(name="add", shared=False)
    def add(*_: int) -> None: ...

    one = add.si(1)
    follow = (one, chain(one, one), group(one, one), chord([one, one], one), add.map([[1]]), add.chunks([(1,)], 1))
    for each in follow:
        stored = json.loads(json.dumps(each))
        check_body([[1], {}, {"callbacks": [stored], "errbacks": [stored, "add"], "chain": [stored], "chord": stored}])
    check_body([[], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}])
    check_body([(), {}, None])


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ([7, {}, {}], "arguments: int"),
        ([[], [], {}], "keyword arguments: list"),
        ([[], {}], "body: list, not a list of arguments"),
        ([[], {}, {"more": 1}], "embed: 1 unknown parts"),
        ([[], {}, {"chain": "add"}], "chain: str"),
        ([[], {}, {"chord": {"task": 7}}], "chord: task: int"),
    ],
)
def test_a_body_that_celery_cannot_process_is_named(body: object, error: str) -> None:
    with pytest.raises(TypeError, match=error):
        check_body(body)


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("task", 7),
        ("id", None),
        ("id", {}),
        ("id", ""),
        ("id", 7),
        ("shadow", 7),
        ("stamped_headers", [7]),
        ("stamps", []),
        ("update", 7),
        ("id", "\udc80"),
        ("eta", "soon"),
        ("expires", "never"),
        ("root_id", {}),
        ("parent_id", 1),
        ("group", []),
        ("eta", 1e9),
        ("expires", 60),
        ("retries", "3"),
        ("stamped_headers", "run"),
        ("published_at", "now"),
        ("redelivered_at", []),
        ("outbox_publication", "1"),
        ("outbox_publication", 1.5),
        ("timelimit", 60),
        ("timelimit", [60]),
        ("timelimit", ["60", None]),
    ],
)
def test_headers_that_celery_cannot_process_are_named(header: str, value: object) -> None:
    with pytest.raises(TypeError, match=f"header {header}: "):
        check_headers({**GOOD, header: value})


@pytest.mark.parametrize("queue", [None, 7, {}])
def test_a_message_of_no_queue_is_named(queue: object) -> None:
    with pytest.raises(TypeError, match="routing_key: "):
        check_message(SimpleNamespace(headers=GOOD, delivery_info={"routing_key": queue}), ())


# --- Prefetch slots ---


@given(
    places=st.integers(1, 8),
    limit=st.integers(1, 12),
    steps=st.lists(st.integers(-3, 3).filter(bool), max_size=60),
)
def test_prefetch_slots_of_waiting_messages_are_added_and_removed(places: int, limit: int, steps: list[int]) -> None:
    count = PrefetchCount(lambda prefetch_count: None, places, limit)
    waiting = 0
    for step in steps:
        step = max(step, -waiting)  # no more messages can stop waiting than wait
        (count.increment_eventually if step > 0 else count.decrement_eventually)(abs(step))
        waiting += step
        assert count.value == min(places + waiting, max(places, limit))
    count.decrement_eventually(waiting)
    assert count.value == places


def test_without_a_limit_it_counts_as_kombu_does() -> None:
    count = PrefetchCount(lambda prefetch_count: None, 2)
    assert [count.increment_eventually() for _ in range(3)] == [3, 4, 5]
    assert [count.decrement_eventually() for _ in range(3)] == [4, 3, 2]


def test_no_limit_of_prefetching_stays_none() -> None:
    """kombu expresses it as 0."""
    count = PrefetchCount(lambda prefetch_count: None, 0, 3)
    assert count.increment_eventually() == count.decrement_eventually() == 0


# --- What a worker holds ---


@pytest.fixture
def consumer(app: Any) -> Iterator[Any]:
    """A consumer whose connection is never opened, and whose pool runs nothing, with a task `known`."""

    def known() -> None: ...

    app.task(known, name="known", shared=False)
    state.reset_state()
    timer = Timer()
    controller = SimpleNamespace(state=state, semaphore=None, use_eventloop=True)
    pool = Mock(num_processes=2, is_green=False, flush=None)
    consumer: Any = Consumer(lambda request: None, app=app, pool=pool, timer=timer, controller=controller)
    consumer.event_dispatcher = None
    consumer.qos = PrefetchCount(lambda prefetch_count: None, 2, 1000)
    consumer.connection, consumer.task_consumer = Mock(), Mock()
    consumer.update_strategies()
    consumer.receive = consumer.create_task_handler()
    yield consumer
    state.reset_state()


tags = iter(range(1_000_000))


def message(app: Any, name: str = "known", **headers: Any) -> Any:
    """A message as kombu passes it to the consumer."""
    made = Mock(
        headers={"task": name, "id": "a", "eta": None, "expires": None, "retries": 0, **headers},
        delivery_info={"exchange": "", "routing_key": "celery"},
        delivery_tag=f"tag {next(tags)}",
        properties={},
        payload=[[], {}, {}],
        body="[[], {}, {}]",
        content_type="application/json",
        content_encoding="utf-8",
        acknowledged=False,
    )

    def settle(*_: Any, **__: Any) -> None:
        made.acknowledged = True

    made.ack_log_error.side_effect = made.reject.side_effect = made.reject_log_error.side_effect = settle
    return made


def renewed(consumer: Any) -> list[str]:
    consumer.task_consumer.channel.qos.renew.reset_mock()
    consumer._renew()
    (tags,), _ = consumer.task_consumer.channel.qos.renew.call_args
    return list(tags)


FAR = "2999-01-01T00:00:00+00:00"


def test_every_waiting_message_is_held(consumer: Any, app: Any) -> None:
    with_eta, running, unknown = message(app, eta=FAR), message(app), message(app, "unknown")
    for each in (with_eta, running, unknown):
        consumer.receive(each)
    assert renewed(consumer) == [each.delivery_tag for each in (with_eta, running, unknown)]
    for each in (with_eta, running, unknown):
        each.acknowledged = True
    assert renewed(consumer) == []
    assert consumer._taken == {}, "none of it is kept"


def test_messages_of_ended_tasks_are_forgotten_also_without_renewals(consumer: Any, app: Any) -> None:
    """With leases nothing is renewed here."""
    waiting = message(app, eta=FAR)
    consumer.receive(waiting)
    for number in range(1000):
        ended = message(app, id=str(number))
        consumer.receive(ended)
        ended.acknowledged = True
    assert len(consumer._taken) < 200
    assert list(consumer.held()) == [waiting.delivery_tag]


def test_messages_of_one_task_id_are_held_each(consumer: Any, app: Any) -> None:
    """Celery's worker has one request per task id."""
    two = [message(app, eta=FAR), message(app, eta=FAR), message(app), message(app)]
    for each in two:
        consumer.receive(each)
    assert renewed(consumer) == [each.delivery_tag for each in two]
    first = next(request for request in state.reserved_requests if request.message is two[2])
    state.task_ready(first)  # it ended, and was acknowledged
    two[2].acknowledged = True
    assert renewed(consumer) == [two[0].delivery_tag, two[1].delivery_tag, two[3].delivery_tag]


def test_a_rate_limited_message_is_held_and_uses_no_slot(consumer: Any, app: Any) -> None:
    app.tasks["known"].rate_limit = "1/h"
    consumer.reset_rate_limits()
    consumer.update_strategies()
    consumer.receive = consumer.create_task_handler()
    several = [message(app, id=str(number)) for number in range(4)]
    for each in several:
        consumer.receive(each)
    assert len(state.reserved_requests) == 1, "one may run"
    assert consumer.qos.value == 2 + 3
    assert renewed(consumer) == [each.delivery_tag for each in several]


def test_what_celery_has_forgotten_is_not_held(consumer: Any, app: Any) -> None:
    """It was not acknowledged and must be redelivered."""
    lost = message(app)
    consumer.receive(lost)
    (request,) = state.reserved_requests
    state.task_ready(request)
    assert renewed(consumer) == []


def test_of_a_lost_connection_only_running_tasks_are_held(consumer: Any, app: Any) -> None:
    several = [message(app, id="eta", eta=FAR), message(app, id="prefetched"), message(app, id="running")]
    for each in (*several, message(app, "unknown")):
        consumer.receive(each)
    running = next(request for request in state.reserved_requests if request.id == "running")
    state.task_accepted(running)
    consumer.on_close()
    assert renewed(consumer) == [several[2].delivery_tag]


def test_nothing_is_renewed_while_there_is_no_connection(consumer: Any, app: Any) -> None:
    consumer.receive(message(app))
    consumer.connection = None
    consumer._renew()
    consumer.task_consumer.channel.qos.renew.assert_not_called()


@pytest.mark.parametrize("renewal", [True, False])
def test_renewal_can_be_switched_off(new_app: NewApp, renewal: bool) -> None:
    consumer = Mock(durable=new_app(transport="stock", renewal=renewal).durable, _renewal=None)
    with pytest.raises(TypeError):  # the rest is Celery's, and this is no real consumer
        Consumer.create_task_handler(consumer)
    assert consumer.timer.call_repeatedly.called is renewal


def test_an_unreachable_broker_during_a_renewal_ends_nothing(
    consumer: Any, app: Any, caplog: pytest.LogCaptureFixture
) -> None:
    consumer.receive(message(app))
    consumer.task_consumer.channel.qos.renew.side_effect = ConnectionError("refused")
    consumer._renew()
    assert "held messages not renewed: refused" in caplog.text


# --- Events ---


def test_events_are_published_together(consumer: Any) -> None:
    consumer.event_dispatcher = Mock()
    for flushed in (1, 2):
        for _ in range(10):
            consumer.on_send_event_buffered()
        consumer.perform_pending_operations()
        assert consumer.event_dispatcher.flush.call_count == flushed - 1
        (due,) = consumer.timer.queue
        assert due.eta <= monotonic() + 0.1
        due.entry()
        consumer.timer.clear()
        assert consumer.event_dispatcher.flush.call_count == flushed


def test_a_solo_worker_publishes_events_before_its_next_task(consumer: Any) -> None:
    consumer.event_dispatcher, consumer.hub, consumer.pool = Mock(), Mock(), Mock(spec=solo.TaskPool)
    consumer.on_send_event_buffered()
    (callback,), _ = consumer.hub.call_soon.call_args
    callback()
    consumer.event_dispatcher.flush.assert_called_once()


def test_a_busy_worker_does_not_publish_events_before_their_time(consumer: Any, app: Any) -> None:
    with app.connection() as connection:
        consumer.event_dispatcher = app.events.Dispatcher(
            connection, buffer_group=["task"], on_send_buffered=consumer.on_send_event_buffered
        )
        consumer.event_dispatcher.producer = Mock()
        consumer.create_task_handler()
        for _ in range(999):
            consumer.event_dispatcher.send("task-started", uuid="a")
        consumer.event_dispatcher.producer.publish.assert_not_called()
        consumer.event_dispatcher.send("task-started", uuid="a")
        consumer.event_dispatcher.producer.publish.assert_called_once()


def test_events_are_not_lost_with_their_connection(consumer: Any, app: Any) -> None:
    """Celery's next dispatcher takes over what the last one could not publish, but not what it has not tried to."""
    with app.connection() as connection:
        lost = app.events.Dispatcher(
            connection, buffer_group=["task"], on_send_buffered=consumer.on_send_event_buffered
        )
        lost.producer = Mock(publish=Mock(side_effect=OSError("lost")))
        consumer.event_dispatcher = lost
        lost.send("task-started", uuid="a")
        consumer.on_close()
        lost.send("task-started", uuid="b")  # of a thread, meanwhile
        consumer.connect().release()
        following = app.events.Dispatcher(connection)
        following.extend_buffer(lost)
        assert [each["uuid"] for events, _ in following._outbound_buffer for each in events] == ["a", "b"]


def test_events_are_published_by_a_timer_of_each_connection(consumer: Any) -> None:
    consumer.on_send_event_buffered()
    consumer._pending_operations.clear()  # cancelled with its connection
    consumer.create_task_handler()
    consumer.on_send_event_buffered()
    consumer.perform_pending_operations()
    assert len(consumer.timer.queue) == 1


def test_events_are_published_before_the_worker_ends(consumer: Any) -> None:
    consumer.event_dispatcher, consumer.blueprint = Mock(), Mock()
    consumer.blueprint.shutdown.side_effect = lambda _: consumer.event_dispatcher.flush.assert_called_once()
    consumer.shutdown()
    consumer.blueprint.shutdown.assert_called_once()


# --- What cannot be run ---


def test_an_odd_message_becomes_a_dead_letter(consumer: Any, app: Any) -> None:
    odd = message(app, retries="3")
    consumer.receive(odd)
    assert odd.dead == (Reason.MALFORMED, "TypeError: header retries: '3'")
    odd.reject.assert_called_once()
    assert consumer.held() == {}


def test_a_message_that_cannot_even_become_a_dead_letter_ends_no_worker(
    consumer: Any, app: Any, caplog: pytest.LogCaptureFixture
) -> None:
    odd = message(app, retries="3")
    odd.reject.side_effect = ValueError("odder")
    consumer.receive(odd)
    assert f"message {odd.delivery_tag} was not dead-lettered; it is redelivered" in caplog.text
    assert consumer.held() == {}, "it must"


def test_an_error_of_the_connection_makes_no_dead_letter(consumer: Any, app: Any) -> None:
    broken = message(app)
    type(broken).payload = PropertyMock(side_effect=ConnectionError("refused"))
    with pytest.raises(ConnectionError):
        consumer.receive(broken)
    broken.reject.assert_not_called()


def test_a_message_returned_after_a_reconnect_uses_no_slot_of_the_new_connection(consumer: Any, app: Any) -> None:
    old = consumer.qos
    unknown = message(app, "unknown")
    unknown.channel = None
    consumer.receive(unknown)
    assert (old.value, len(consumer.held())) == (3, 1)
    consumer.qos = PrefetchCount(lambda prefetch_count: None, 2, 1000)
    (entry,) = [each.entry for each in consumer.timer.queue if each.entry.fun == consumer._put_back]
    entry()
    assert (old.value, consumer.qos.value) == (2, 2)
    assert consumer.held() == {}


@pytest.mark.parametrize("patience", [3.9, 0, None, "long"])
def test_patience_counts_the_time_that_workers_held_it_back(consumer: Any, app: Any, patience: Any) -> None:
    """Whatever the queue's length; a header that is not a number does not count."""
    unknown = message(app, "unknown", published_at=1.0, unknown_for=patience)
    consumer.receive(unknown)
    assert not unknown.acknowledged
    assert list(consumer.held()) == [unknown.delivery_tag]


def test_a_task_that_stays_unknown_becomes_a_dead_letter(consumer: Any, app: Any) -> None:
    unknown = message(app, "unknown", unknown_for=4.0)
    consumer.receive(unknown)
    assert unknown.dead == (Reason.UNKNOWN_TASK, "unknown to the workers for 4 s")
    assert unknown.acknowledged
