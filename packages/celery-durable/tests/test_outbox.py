"""The outbox: a task is stored before it is published, and published again until it has ended."""

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest
from celery import Celery, states
from celery.exceptions import Ignore
from kombu import Exchange, Queue
from kombu.exceptions import OperationalError
from redis import ConnectionError as RedisAwayError
from redis import Redis

from celery_durable import (
    Config,
    DelayTooLongError,
    MessageTooLargeError,
    NotInOutboxError,
    install,
)
from celery_durable.events import end_entry
from celery_durable.outbox import BATCH, PUBLICATION, BrokerView, Entry
from celery_durable.signals import outbox_republished, outbox_written, publish_failed

from .conftest import NewApp
from .poll import poll_until
from .project import SHORT, run_task
from .redis_server import RedisServer

LONG_AGO = SHORT["republish_after"] + 60
NOWHERE = {"broker_url": "redis://127.0.0.1:1/0"}
QUEUE = "celery"


class Box:
    """An app with two tasks, and its outbox."""

    def __init__(self, app: Any, client: Any) -> None:
        self.app, self.client = app, client
        self.outbox = app.durable.outbox
        self.ran: list[str] = []

        def apply(self_: Any, *args: Any) -> None:
            self.ran.append(self_.request.id)

        def add(*args: Any) -> None: ...

        options = {"shared": False, "ignore_result": True}
        self.apply = app.task(apply, bind=True, name="apply", outbox=True, **options)
        self.add = app.task(add, name="add", **options)
        app.finalize()

    def entry(self, task_id: str = "a") -> dict[str, Any]:
        return dict(json.loads(self.client.hget(self.outbox.key, task_id)))

    def due_in(self, task_id: str = "a") -> float:
        return float(self.client.zscore(self.outbox.due_key, task_id)) - time.time()

    def make_old(self, *task_ids: str) -> None:
        """Date the entries to long ago, and make them due for the reconciler."""
        for task_id in task_ids or ("a",):
            old = {**self.entry(task_id), "published": time.time() - LONG_AGO}
            self.client.hset(self.outbox.key, task_id, json.dumps(old))
            self.client.zadd(self.outbox.due_key, {task_id: time.time() - 1})

    def messages(self, queue: str = QUEUE) -> list[dict[str, Any]]:
        """The messages that wait in a queue, the next one first, and then those that wait for their ETA; each as stored
        in Redis."""
        lists = self.app.durable.priority_lists(queue)
        waiting = [payload for name in lists for payload in reversed(self.client.lrange(name, 0, -1))]
        delayed = [member.split("\0", 2)[2] for member in self.client.zrange(self._delayed(queue), 0, -1)]
        return [json.loads(payload) for payload in (*waiting, *delayed)]

    def _delayed(self, queue: str) -> str:
        return str(self.app.durable.delayed_key(queue))

    def ids(self, queue: str = QUEUE) -> list[tuple[str, int | None]]:
        return [(each["headers"]["id"], each["headers"].get(PUBLICATION)) for each in self.messages(queue)]

    def take(self, queue: str = QUEUE) -> list[dict[str, Any]]:
        """Take all messages out of a queue; returns their headers."""
        taken = [message["headers"] for message in self.messages(queue)]
        self.client.delete(*self.app.durable.priority_lists(queue), self._delayed(queue))
        return taken

    def republish(self) -> dict[str, int]:
        found = self.app.durable.reconcile()
        return {name: found[name] for name in ("published", "waiting")}


@pytest.fixture
def box(app: Any, client: Any) -> Box:
    return Box(app, client)


NewBox = Callable[..., Box]


@pytest.fixture
def new_box(new_app: NewApp, client: Any) -> NewBox:
    return lambda *args, **config: Box(new_app(*args, **config), client)


@pytest.fixture
def announced() -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """The outbox's signals."""
    said: list[tuple[str, dict[str, Any]]] = []
    receivers = []
    for signal in (outbox_written, outbox_republished, publish_failed):

        def receiver(signal: Any, sender: Any, name: str = signal.name, **arguments: Any) -> None:
            said.append((name, arguments))

        signal.connect(receiver)
        receivers.append((signal, receiver))
    yield said
    for signal, receiver in receivers:
        signal.disconnect(receiver)


# --- Publishing ---


def test_a_task_is_written_down_and_published(box: Box, announced: list[Any]) -> None:
    box.apply.apply_async(("x",), task_id="a", priority=3)
    (message,) = box.messages()
    assert (message["headers"]["id"], message["headers"][PUBLICATION]) == ("a", 1)
    assert box.client.llen(f"{QUEUE}\x06\x163") == 1
    assert box.entry()["headers"]["task"] == "apply"
    assert box.due_in() == pytest.approx(SHORT["republish_after"], abs=5)
    assert announced == [("outbox_written", {"task": "apply"})]


def test_a_task_without_the_outbox_is_only_published(box: Box) -> None:
    box.add.apply_async((1, 2))
    assert [publication for _, publication in box.ids()] == [None]
    assert not box.client.exists(box.outbox.key)


def test_sent_by_name_it_is_written_down_as_well(box: Box) -> None:
    box.app.send_task("apply", task_id="a")
    assert box.entry()["name"] == "apply"


def test_with_the_outbox_switched_off_nothing_is_written_down(new_box: NewBox) -> None:
    box = new_box(outbox=False)
    box.apply.apply_async(task_id="a")
    assert box.ids() == [("a", None)]
    assert not box.client.exists(box.outbox.key)
    with pytest.raises(NotInOutboxError):
        box.apply.apply_async(later=True)


def test_the_retries_of_one_publish_are_not_those_of_the_next(box: Box) -> None:
    with box.app.connection_for_write() as connection, box.app.amqp.Producer(connection) as producer:
        box.add.apply_async((1, 2), producer=producer)
        assert producer.connection.transport_options["max_retries"] == 2, "kombu has left the retries there"
        box.add.apply_async((1, 2), producer=producer, retry=False)
        assert producer.connection.transport_options["max_retries"] == 0


def test_a_failed_publish_is_repeated_by_the_reconciler(
    new_box: NewBox, box: Box, announced: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert new_box(NOWHERE).apply.apply_async(("x",), task_id="a").id == "a"
    assert "apply[a] not published" in caplog.text
    assert "the outbox has it" in caplog.text
    assert box.republish() == {"published": 1, "waiting": 0}
    assert box.ids() == [("a", 2)]
    assert box.republish() == {"published": 0, "waiting": 0}, "it has been published now"
    assert box.due_in() == pytest.approx(SHORT["republish_after"], abs=5)
    assert [name for name, _ in announced] == ["outbox_written", "publish_failed"], "and not twice"


def test_without_the_outbox_the_caller_gets_the_error(new_box: NewBox, announced: list[Any]) -> None:
    with pytest.raises(OperationalError):
        new_box(NOWHERE).add.apply_async((1, 2), retry=False)
    assert [(name, said["task"]) for name, said in announced] == [("publish_failed", "add")]


def test_later_does_not_connect_to_the_broker(new_box: NewBox, box: Box, caplog: pytest.LogCaptureFixture) -> None:
    new_box(NOWHERE).apply.apply_async(("x",), task_id="a", later=True)
    assert caplog.records == []
    assert box.republish() == {"published": 1, "waiting": 0}
    (message,) = box.take()
    assert run_task(box.apply, message) == "SUCCESS"


def test_later_needs_the_outbox(box: Box) -> None:
    with pytest.raises(NotInOutboxError, match="later: add has no outbox; give it outbox=True"):
        box.add.apply_async((1, 2), later=True)


@pytest.mark.parametrize(
    ("options", "conf", "said"),
    [
        ({"serializer": "pickle"}, {}, "apply: its serializer is pickle; the outbox keeps JSON"),
        ({}, {"task_serializer": "yaml"}, "apply: its serializer is yaml; the outbox keeps JSON"),
        ({}, {"task_protocol": 1}, "apply: task_protocol is 1; the outbox needs 2"),
    ],
)
def test_what_the_outbox_cannot_keep_is_refused(
    new_box: NewBox, options: dict[str, Any], conf: dict[str, Any], said: str
) -> None:
    if conf.get("task_serializer"):
        pytest.importorskip("yaml")
    box = new_box(conf)
    with pytest.raises(NotInOutboxError, match=said):
        box.apply.apply_async(**options)
    assert not box.client.exists(QUEUE, box.outbox.key)


def test_what_cannot_be_written_down_is_not_published(new_app: NewApp, redis_server: RedisServer) -> None:
    box = Box(new_app(store="redis://127.0.0.1:1/0"), Redis.from_url(redis_server.url))
    with pytest.raises(OperationalError):
        box.apply.apply_async()
    assert box.messages() == []


@pytest.mark.parametrize("task", ["add", "apply"])
@pytest.mark.parametrize("how", ["countdown", "eta"])
def test_a_delay_beyond_the_longest_is_refused(new_box: NewBox, task: str, how: str) -> None:
    box = new_box(transport="stock")
    seconds = SHORT["max_delay"] + 5
    options = {"countdown": seconds} if how == "countdown" else {"eta": box.app.now() + timedelta(seconds=seconds)}
    with pytest.raises(DelayTooLongError, match=rf"{task}: due in 1[01] s; .* is 6 s at most \(Config.max_delay\)"):
        getattr(box, task).apply_async((1, 2), **options)
    assert not box.client.exists(QUEUE, box.outbox.key)


def test_a_delay_within_it_is_not(box: Box) -> None:
    box.apply.apply_async(task_id="a", countdown=5)
    assert box.due_in() == pytest.approx(5 + SHORT["republish_after"], abs=3), "it is not due before"


@pytest.mark.parametrize("options", [{}, {"later": True}], ids=["now", "later"])
def test_what_is_too_large_is_refused_before_it_is_written_down(new_box: NewBox, options: dict[str, Any]) -> None:
    box = new_box(max_message_bytes=20_000)
    with pytest.raises(MessageTooLargeError, match=r"apply: a message of \d+ bytes; max_message_bytes is 20000"):
        box.apply.apply_async(("x" * 20_000,), **options)
    assert not box.client.exists(QUEUE, box.outbox.key)


def test_the_size_of_a_message_is_that_of_its_own_serializer(box: Box) -> None:
    box.add.apply_async(({1, 2},), serializer="pickle")  # a set is not JSON
    assert box.client.llen(QUEUE) == 1


def test_what_is_published_is_not_too_large_for_a_worker(new_box: NewBox) -> None:
    limit = 100_000
    box = new_box(max_message_bytes=limit)
    for less in range(0, 4000, 50):  # the largest that is not refused
        try:
            box.add.apply_async(("x" * (limit * 3 // 4 - less),))
        except MessageTooLargeError:
            continue
        break
    (message,) = box.client.lrange(QUEUE, 0, -1)
    more = len(', "redelivered": true, "redelivered_at": 1795602119.123456, "unknown_for": 1795602119.123456')
    assert 0.97 * limit < len(message) <= limit - more


def nothing() -> None: ...


# --- An entry and its message in one step, where the store is the broker's database ---


def no_step_of_its_own(*_: Any) -> None:
    raise AssertionError("the entry was not written together with its message")


def test_an_entry_and_its_message_are_written_in_one_step(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(box.outbox, "write", no_step_of_its_own)
    box.apply.apply_async(("x",), task_id="a", priority=9)
    box.apply.apply_async(("y",), task_id="b", countdown=5)
    assert box.ids() == [("a", 1), ("b", 1)]
    assert sorted(box.client.hkeys(box.outbox.key)) == ["a", "b"]
    assert box.client.zcard(box.app.durable.delayed_key(QUEUE)) == 1
    box.apply.apply_async(("x",), task_id="a")
    assert ("a", 2) in box.ids(), "the same id once more"


def test_an_entry_that_has_no_message_yet_is_published_soon(
    box: Box, announced: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    box.apply.apply_async(queue="odd")  # declares it
    box.client.flushall()
    box.client.set("odd", "not a list")
    box.apply.apply_async(task_id="a", queue="odd")
    assert box.due_in() < 1
    assert "apply[a] not published (WRONGTYPE" in caplog.text
    assert [name for name, _ in announced[-2:]] == ["publish_failed", "outbox_written"]


def test_the_same_id_once_more_is_published_soon_if_its_message_is_refused(
    box: Box, caplog: pytest.LogCaptureFixture
) -> None:
    box.apply.apply_async(task_id="a")
    box.client.delete(QUEUE)
    box.client.set(QUEUE, "not a list")
    box.apply.apply_async(task_id="a")
    assert box.due_in() < 1
    assert "apply[a] not published (" in caplog.text
    assert box.client.hget(box.outbox.publications_key, "a") == "2"


def test_a_message_to_another_broker_has_its_entry_in_the_store(box: Box, other_redis: RedisServer) -> None:
    with box.app.connection_for_write(other_redis.url) as connection:
        box.apply.apply_async(task_id="a", connection=connection)
    assert box.ids() == []
    assert other_redis.client.llen(QUEUE) == 1
    assert box.client.hexists(box.outbox.key, "a")


def test_another_database_of_the_same_redis_is_not_the_brokers(new_app: NewApp, redis_server: RedisServer) -> None:
    store = redis_server.url.removesuffix("/0") + "/1"
    box = Box(new_app(store=store), Redis.from_url(redis_server.url, decode_responses=True))
    box.apply.apply_async(task_id="a")
    assert box.ids() == [("a", 1)]
    assert Redis.from_url(store, decode_responses=True).hkeys(box.outbox.key) == ["a"]


# --- The end of an entry ---


@pytest.mark.parametrize(
    ("state", "ends"),
    [(states.SUCCESS, True), (states.FAILURE, True), (states.IGNORED, True), (states.RETRY, False), (None, False)],
)
def test_states_that_end_an_entry(box: Box, state: str | None, ends: bool) -> None:
    box.apply.apply_async(task_id="a")
    box.apply.push_request(id="a", **{PUBLICATION: 1})
    end_entry(task=box.apply, task_id="a", state=state)
    box.apply.pop_request()
    assert bool(box.client.hexists(box.outbox.key, "a")) is not ends
    assert bool(box.client.hexists(box.outbox.publications_key, "a")) is not ends
    assert (box.client.zscore(box.outbox.due_key, "a") is not None) is not ends


def test_a_run_ends_it(box: Box) -> None:
    box.apply.apply_async(task_id="a")
    (message,) = box.take()
    assert run_task(box.apply, message) == "SUCCESS"
    assert sorted(box.client.keys()) == ["_kombu.binding.celery", "_kombu.binding_permanent.celery"]


@pytest.mark.parametrize("headers", [{}, {PUBLICATION: None}, {PUBLICATION: 0}], ids=str)
def test_a_foreign_message_with_its_id_does_not_end_it(box: Box, headers: dict[str, Any]) -> None:
    """It may come from a publisher without the library."""
    box.apply.apply_async(task_id="a")
    assert run_task(box.apply, {"id": "a", "task": "apply", **headers}) == "SUCCESS"
    assert box.entry()["headers"]["id"] == "a"


def test_a_task_that_was_not_in_the_outbox_leaves_no_key(box: Box) -> None:
    box.outbox.end("unknown", 1)
    assert run_task(box.apply, {"id": "unknown", PUBLICATION: 1}) == "SUCCESS"
    assert not box.client.exists(box.outbox.key, box.outbox.due_key, box.outbox.publications_key)


def test_an_unreachable_store_at_start_and_end_is_no_error(
    box: Box, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    box.apply.apply_async(task_id="a")
    (message,) = box.take()
    with redis_server.stopped():
        assert run_task(box.apply, message) == "SUCCESS"
    assert "outbox: start of a not recorded" in caplog.text
    assert "outbox: end of a not recorded" in caplog.text


@pytest.mark.parametrize("error", [RedisAwayError, OperationalError])
def test_an_entry_whose_successor_could_not_be_written_has_not_ended(
    box: Box, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def away(*_: Any) -> None:
        raise error("away")

    box.apply.apply_async(task_id="a")
    (message,) = box.take()
    message["chain"] = [box.apply.si().set(task_id="b")]
    with monkeypatch.context() as patch:
        patch.setattr(box.outbox, "write_and_publish", away)
        run_task(box.apply, message)
    assert box.client.hexists(box.outbox.key, "a")
    run_task(box.apply, {**message, "chain": [box.apply.si().set(task_id="b")]})
    assert box.client.hkeys(box.outbox.key) == ["b"]


def test_a_task_that_cannot_publish_another_has_not_ended(new_box: NewBox) -> None:
    """Even if it catches the error: the task that it should have published would be lost."""
    box = new_box(NOWHERE)

    def parent() -> None:
        with pytest.raises(OperationalError):
            box.add.apply_async(retry=False)

    task = box.app.task(parent, name="parent", outbox=True, shared=False, ignore_result=True)
    box.app.finalize()
    task.apply_async(task_id="a", later=True)
    assert run_task(task, {"id": "a", PUBLICATION: 1}) == "SUCCESS"
    assert box.client.hexists(box.outbox.key, "a")


def test_an_entry_that_could_not_be_counted_in_its_chord_has_not_ended(
    new_box: NewBox, other_redis: RedisServer
) -> None:
    box = new_box({"result_backend": other_redis.url, "result_backend_always_retry": False})
    box.apply.apply_async(task_id="a")
    (message,) = box.take()
    chord = {**box.apply.s(), "chord_size": 2}
    with other_redis.stopped():
        run_task(box.apply, {**message, "chord": chord, "group": "g", "group_index": 0})
    assert box.ran == ["a"]
    assert box.client.hexists(box.outbox.key, "a")


def test_a_task_that_is_replaced_keeps_its_id(box: Box) -> None:
    def replace(self: Any) -> None:
        self.replace(box.apply.si())

    replaced = box.app.task(replace, name="replaced", bind=True, outbox=True, shared=False, ignore_result=True)
    replaced.apply_async(task_id="a")
    (message,) = box.take()
    run_task(replaced, message)
    assert box.entry()["name"] == "apply"
    (message,) = box.take()
    assert message["id"] == "a"
    assert run_task(box.apply, message) == "SUCCESS"
    assert not box.client.exists(box.outbox.key)


def test_a_task_that_has_nothing_more_to_do_ends_its_entry(box: Box) -> None:
    def ignore() -> None:
        raise Ignore

    task = box.app.task(ignore, outbox=True, shared=False, ignore_result=True)
    task.apply_async(task_id="a")
    (message,) = box.take()
    assert run_task(task, message) == "IGNORED"
    assert not box.client.exists(box.outbox.key)


# --- The numbers of its messages ---


def test_a_superseded_message_neither_runs_nor_ends_the_entry(box: Box) -> None:
    box.apply.apply_async(task_id="a")
    (old,) = box.take()
    box.make_old()
    assert box.republish() == {"published": 1, "waiting": 0}
    (new,) = box.take()
    assert run_task(box.apply, old) == "IGNORED"
    assert box.client.hexists(box.outbox.key, "a")
    assert run_task(box.apply, new) == "SUCCESS"
    assert not box.client.exists(box.outbox.key)
    assert box.ran == ["a"]


def test_an_older_message_that_arrives_after_the_end_does_not_run(box: Box) -> None:
    """For example from a worker that was frozen after it had taken the message."""
    box.apply.apply_async(task_id="a")
    (old,) = box.take()
    box.make_old()
    box.republish()
    (new,) = box.take()
    assert run_task(box.apply, new) == "SUCCESS"
    assert [run_task(box.apply, old), run_task(box.apply, new)] == ["IGNORED", "IGNORED"]
    assert box.ran == ["a"]
    assert 0 < box.client.ttl(f"{box.outbox.key}:ended:a") <= 3600


def test_an_entry_of_one_message_leaves_nothing_behind(box: Box) -> None:
    for number in range(3):
        box.apply.apply_async(task_id=f"{number}")
    for message in box.take():
        run_task(box.apply, message)
    assert not box.client.keys(f"{box.outbox.key}*")


def test_a_task_published_again_under_its_id_continues_the_numbering(box: Box) -> None:
    box.apply.apply_async(task_id="a")
    (old,) = box.take()
    box.make_old()
    box.republish()
    (new,) = box.take()
    run_task(box.apply, new)
    box.apply.apply_async(task_id="a")
    assert [run_task(box.apply, old), run_task(box.apply, new)] == ["IGNORED", "IGNORED"], (
        "they are older than the new entry"
    )
    (second,) = box.take()
    assert run_task(box.apply, second) == "SUCCESS"
    assert box.ran == ["a", "a"]


def test_a_retry_supersedes_the_message_that_it_repeats(box: Box) -> None:
    def again(self: Any) -> None:
        if not self.request.retries:
            raise self.retry(countdown=1)

    task = box.app.task(again, name="again", bind=True, outbox=True, shared=False, ignore_result=True)
    task.apply_async(task_id="a")
    (first,) = box.take()
    assert run_task(task, first) == "RETRY"
    (second,) = box.take()
    assert (second["retries"], second[PUBLICATION]) == (1, 2)
    assert box.entry()["headers"]["retries"] == 1
    assert run_task(task, first) == "IGNORED", "its worker was killed before it could acknowledge it"
    assert run_task(task, second) == "SUCCESS"
    assert run_task(task, first) == "IGNORED"


def test_a_retry_has_its_own_expiry_and_due_time(box: Box) -> None:
    """Although it copies the headers of the message that it repeats."""

    def again(self: Any) -> None:
        raise self.retry(countdown=1)

    task = box.app.task(again, name="again", bind=True, outbox=True, shared=False, ignore_result=True)
    task.apply_async(task_id="a", headers={"mine": 1})
    (first,) = box.take()
    before = time.time()
    past = {"redelivered": True, "redelivered_at": 1.0, "unknown_for": 3.0, "published_at": 1.0}
    assert run_task(task, {**first, **past}) == "RETRY"
    (second,) = box.take()
    assert (second["mine"], second[PUBLICATION]) == (1, 2)
    assert second["published_at"] >= before
    assert not {"redelivered", "redelivered_at", "unknown_for"} & second.keys()


def test_an_app_without_the_library_stamps_nothing(box: Box, redis_server: RedisServer) -> None:
    """Although it is in the same process."""
    stock = Celery("stock", broker=redis_server.url, set_as_current=False)
    stock.send_task("add")
    (message,) = box.take()
    assert "published_at" not in message


def test_a_run_that_starts_gets_its_time(box: Box) -> None:
    box.apply.apply_async(task_id="a", later=True)
    assert box.outbox.start("a", 1)
    assert box.due_in() == pytest.approx(SHORT["republish_after"], abs=5)
    assert box.republish() == {"published": 0, "waiting": 0}
    assert box.outbox.start("unknown", 1)
    assert box.client.zcard(box.outbox.due_key) == 1


# --- The reconciler: what is lost ---


def test_a_lost_message_is_published_again_with_its_id_and_options(box: Box, announced: list[Any]) -> None:
    box.apply.apply_async(("x", 0.5), {}, task_id="a", priority=6, headers={"mine": 1}, expires=60)
    (first,) = box.messages()
    box.take()
    box.make_old()
    assert box.republish() == {"published": 1, "waiting": 0}
    (again,) = box.messages()
    assert box.client.llen(f"{QUEUE}\x06\x166") == 1
    assert again["body"] == first["body"]
    changed = {name for name in first["headers"] if first["headers"][name] != again["headers"].get(name)}
    assert changed == {"published_at", PUBLICATION}
    assert again["headers"].keys() == first["headers"].keys()
    _, said = announced[-1]
    assert said == {"task": "apply", "queue": QUEUE, "age": pytest.approx(LONG_AGO, abs=5)}


def test_several_reconcilers_publish_different_entries(box: Box, new_box: NewBox) -> None:
    number = 2 * BATCH + 7
    for each in range(number):
        box.apply.apply_async(task_id=f"{each}", later=True)
    others = [box, new_box(), new_box()]
    assert sum(other.republish()["published"] for other in others) == number
    ids = [task_id for task_id, _ in box.ids()]
    assert len(ids) == len(set(ids)) == number


def test_an_entry_that_ended_is_forgotten(box: Box) -> None:
    box.client.zadd(box.outbox.due_key, {"gone": 0})
    assert box.republish() == {"published": 0, "waiting": 0}
    assert not box.client.exists(box.outbox.due_key)


def test_an_entry_that_ends_while_it_is_published_does_not_come_back(box: Box) -> None:
    box.apply.apply_async(task_id="a", later=True)

    def publish(entries: list[tuple[Entry, int]]) -> dict[str, Exception]:
        for entry, number in entries:
            box.outbox.end(entry.id, number)
        return {}

    box.outbox.republish(publish, view(box))
    assert not box.client.exists(box.outbox.key, box.outbox.due_key, box.outbox.publications_key)


def test_an_entry_that_is_written_again_while_it_is_published_keeps_what_was_written(box: Box) -> None:
    """A retry of the message that the reconciler is publishing."""
    box.apply.apply_async(task_id="a", later=True)

    def publish(_: list[tuple[Entry, int]]) -> dict[str, Exception]:
        box.apply.apply_async(task_id="a", retries=1)
        return {}

    box.outbox.republish(publish, view(box))
    assert box.entry()["headers"]["retries"] == 1


def test_a_publish_that_failed_after_its_task_was_written_again_changes_nothing(box: Box) -> None:
    """Its connection hung, but its message had arrived, and its task was retried in the meantime."""
    box.apply.apply_async(task_id="a", retries=1)
    box.outbox.due_now(Entry(**{**box.entry(), "headers": {**box.entry()["headers"], "retries": 0}}), number=0)
    assert box.entry()["headers"]["retries"] == 1
    assert box.due_in() > 1


def view(box: Box) -> BrokerView:
    found: BrokerView = box.app.durable._view(box.client)
    return found


@pytest.mark.parametrize("error", [OperationalError, RedisAwayError, OSError])
def test_an_unreachable_broker_loses_no_entry(box: Box, error: type[Exception]) -> None:
    box.apply.apply_async(task_id="a", later=True)

    def away(*_: Any) -> None:
        raise error("away")

    with pytest.raises(error):
        box.outbox.republish(away, view(box))
    assert box.client.hexists(box.outbox.key, "a")
    assert box.due_in() < 1, "as soon as the broker is back"


def test_a_broker_that_does_not_answer_delays_no_entry(new_box: NewBox, box: Box, other_redis: RedisServer) -> None:
    away = new_box({"broker_url": other_redis.url})
    away.apply.apply_async(task_id="a")
    away.make_old()
    with other_redis.stopped(), pytest.raises((RedisAwayError, OperationalError)):
        away.republish()
    assert box.due_in() < 1


def test_an_entry_that_cannot_be_published_does_not_block_the_others(
    box: Box, caplog: pytest.LogCaptureFixture, announced: list[Any]
) -> None:
    box.apply.apply_async(queue="odd")  # declares it
    box.client.flushall()
    box.client.set("odd", "not a list")
    for name, queue in (("a", QUEUE), ("b", "odd"), ("c", QUEUE)):
        box.apply.apply_async(task_id=name, queue=queue, later=True)
    assert box.republish() == {"published": 2, "waiting": 0}
    assert [task_id for task_id, _ in box.ids()] == ["a", "c"]
    assert box.entry("b")["published"] == 0
    assert box.due_in("b") == pytest.approx(SHORT["republish_after"], abs=5), "it is tried again, later"
    assert "apply[b] cannot be published; retried every 9 s" in caplog.text
    assert "WRONGTYPE" in caplog.text
    assert [name for name, _ in announced].count("publish_failed") == 1


def test_an_entry_whose_queue_no_longer_exists_does_not_block_the_others(
    new_box: NewBox, caplog: pytest.LogCaptureFixture
) -> None:
    conf = {"task_queues": [Queue("one"), Queue("two")], "task_default_queue": "one"}
    before = new_box(conf)
    for name, queue in (("a", "two"), ("b", "one")):
        before.apply.apply_async(task_id=name, queue=queue)
        before.take(queue)
        before.make_old(name)
    after = new_box({**conf, "task_queues": [Queue("one")], "task_create_missing_queues": False})
    assert after.republish() == {"published": 1, "waiting": 0}
    assert after.ids("one") == [("b", 2)]
    assert "apply[a] cannot be published" in caplog.text


@pytest.mark.parametrize("text", ["}{", "[]", '{"name": 1}', '{"headers": {}}'])
def test_a_malformed_entry_does_not_block_the_others(box: Box, text: str, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a", "b"):
        box.apply.apply_async(task_id=name, later=True)
    box.client.hset(box.outbox.key, "a", text)
    assert box.republish() == {"published": 1, "waiting": 0}
    assert box.client.hget(box.outbox.key, "a") == text, "it may be repaired by hand"
    assert f"outbox: a of {box.outbox.key} cannot be read and stays" in caplog.text


@pytest.mark.parametrize("change", [{"of a later release": 1}, {"headers": {"id": "b"}}])
def test_an_entry_that_was_replaced_stays(box: Box, change: dict[str, Any]) -> None:
    box.apply.apply_async(task_id="a", later=True)
    box.client.hset(box.outbox.key, "a", json.dumps({**box.entry(), **change}))
    assert box.republish() == {"published": 0, "waiting": 0}
    assert box.client.hexists(box.outbox.key, "a")


# --- The reconciler: what is not lost ---


def stranger(box: Box, *, stamp: float | None, index: int = 0) -> None:
    """Another message of the queue, as the next one to be taken."""
    box.add.apply_async(task_id=f"stranger {index}", queue="elsewhere")
    (message,) = box.messages("elsewhere")
    box.take("elsewhere")
    del message["headers"]["published_at"]
    if stamp is not None:
        message["headers"]["published_at"] = stamp
    box.client.rpush(QUEUE, json.dumps(message))


def test_what_waits_behind_an_older_message_is_not_lost(box: Box) -> None:
    box.apply.apply_async(task_id="a")
    box.make_old()
    stranger(box, stamp=time.time() - LONG_AGO - 10)
    assert box.republish() == {"published": 0, "waiting": 1}
    assert box.due_in() == pytest.approx(SHORT["recheck_after"], abs=2)


@pytest.mark.parametrize("head", ["}{", "{}", "[]", "7", '{"headers": {}}', '{"headers": {"published_at": "now"}}'])
@pytest.mark.parametrize("there", [True, False], ids=["in the queue", "not in the queue"])
def test_a_next_message_that_cannot_be_dated_means_that_all_wait(box: Box, head: str, there: bool) -> None:
    """Such as one of a publisher without the library. The opposite had turned five messages into 26."""
    for number in range(5):
        box.apply.apply_async(task_id=f"{number}")
    box.make_old(*map(str, range(5)))
    if not there:
        box.take()
    box.client.rpush(QUEUE, head)
    for _ in range(4):
        assert box.republish() == {"published": 0, "waiting": 5}
        box.client.zadd(box.outbox.due_key, dict.fromkeys(map(str, range(5)), 0))
    assert box.client.llen(QUEUE) == 1 + 5 * there


def test_a_next_message_that_was_given_back_means_that_all_wait(box: Box) -> None:
    box.apply.apply_async(task_id="a")
    box.take()
    box.make_old()
    box.client.rpush(QUEUE, json.dumps({"headers": {"redelivered": True, "published_at": time.time()}}))
    assert box.republish() == {"published": 0, "waiting": 1}


def test_a_message_that_waits_for_its_eta_is_not_lost(box: Box) -> None:
    """Or, if no worker of its queue runs, beyond it."""
    for number in range(150):
        box.apply.apply_async(task_id=f"{number}", countdown=5)
    box.make_old(*map(str, range(150)))
    assert box.republish() == {"published": 0, "waiting": 150}
    box.client.zpopmax(box.app.durable.delayed_key(QUEUE))
    box.make_old(*map(str, range(150)))
    assert box.republish() == {"published": 1, "waiting": 149}


@pytest.mark.parametrize("task_id", ["a", 'with "quotes" and \\', "with ümlauts \u2603 \U0001f600"])
@pytest.mark.parametrize("where", ["at the end", "in the middle of 300", "of a worker"])
def test_a_message_behind_a_newer_one_is_not_lost(box: Box, where: str, task_id: str) -> None:
    """A message that is rejected or put back goes to the end of its queue, and a worker may hold it."""
    box.apply.apply_async(task_id=task_id)
    (payload,) = box.client.lrange(QUEUE, 0, -1)
    box.client.delete(QUEUE)
    box.make_old(task_id)
    others = [json.dumps({"headers": {"id": f"{n}", "published_at": time.time()}}) for n in range(300)]
    if where == "of a worker":
        box.client.hset("unacked", "tag", json.dumps([json.loads(payload), "", QUEUE]))
        box.client.rpush(QUEUE, *others)
    elif where == "at the end":
        box.client.rpush(QUEUE, *others)
        box.client.lpush(QUEUE, payload)
    else:
        box.client.rpush(QUEUE, *others[:150], payload, *others[150:])
    assert box.republish() == {"published": 0, "waiting": 1}
    for _ in range(2):
        box.client.delete("unacked")
        box.client.lrem(QUEUE, 0, payload)
    box.client.zadd(box.outbox.due_key, {task_id: 0})
    assert box.republish() == {"published": 1, "waiting": 0}, "now it is"


@pytest.mark.parametrize("where", ["waits", "held"])
def test_names_of_ones_own(new_box: NewBox, where: str) -> None:
    """Prefix, separator, priorities and the key of the held messages."""
    options = {"global_keyprefix": "mine:", "sep": "|", "priority_steps": [0, 5, 9], "unacked_key": "taken"}
    box = new_box({"broker_transport_options": options})
    box.apply.apply_async(task_id="a", priority=7)
    assert box.client.llen("mine:celery|5") == 1
    newer = json.dumps({"headers": {"id": "b", "published_at": time.time()}})
    if where == "held":
        box.client.hset("mine:taken", "tag", box.client.rpop("mine:celery|5"))
    box.client.rpush("mine:celery|5", newer)
    box.make_old()
    assert box.republish() == {"published": 0, "waiting": 1}
    box.client.delete("mine:celery|5", "mine:taken")
    box.client.zadd(box.outbox.due_key, {"a": 0})
    assert box.republish() == {"published": 1, "waiting": 0}
    assert box.client.llen("mine:celery|5") == 1


def test_a_message_that_only_mentions_the_id_is_not_that_task(box: Box) -> None:
    box.apply.apply_async(task_id="a")
    box.take()
    box.make_old()
    other = {"headers": {"id": "b", "argsrepr": '"id": "a"', "root_id": "a", "published_at": time.time()}}
    box.client.lpush(QUEUE, json.dumps(other))
    assert box.republish() == {"published": 1, "waiting": 0}


# --- A Redis that accepts connections and does not answer ---


def test_a_frozen_broker_holds_no_publisher_for_long(new_box: NewBox, other_redis: RedisServer) -> None:
    """Three attempts of two time-outs each; without time-outs one attempt would take 45 s."""
    box = new_box({"broker_url": other_redis.url})
    box.add.apply_async((1, 2))
    with other_redis.frozen():
        before = time.monotonic()
        with pytest.raises(OperationalError):
            box.add.apply_async((1, 2))
        box.apply.apply_async(task_id="a")
        assert time.monotonic() - before < 20
    assert box.entry()["published"] == 0, "the reconciler has it"
    poll_until(lambda: box.republish()["published"] == 1, "it to be published", timeout=30)


# --- Routes ---

EVENTS = Exchange("events", "topic")
ROUTED = {
    "task_queues": [
        Queue("orders", EVENTS, routing_key="order.#"),
        Queue("all", EVENTS, routing_key="#"),
        Queue("bound", Exchange("direct"), routing_key="by a key"),
        Queue("plain"),
    ],
    "task_default_queue": "plain",
    "task_routes": {"routed": {"queue": "orders", "routing_key": "invoice.new"}},
}


@pytest.mark.parametrize(
    ("options", "queues"),
    [
        ({}, ["plain"]),
        ({"queue": "bound"}, ["bound"]),
        ({"exchange": "direct", "routing_key": "by a key", "queue": "bound"}, ["bound"]),
        ({"queue": "orders"}, ["all", "orders"]),
        ({"queue": "orders", "routing_key": "order.new"}, ["all", "orders"]),
        ({"queue": "orders", "routing_key": "invoice.new"}, ["all"]),
        ({"queue": "orders", "exchange": EVENTS, "routing_key": "order.new"}, ["all", "orders"]),
        ({"exchange": "events", "routing_key": "order.new"}, ["all", "orders"]),
        ({"exchange": EVENTS, "routing_key": "invoice.new"}, ["all"]),
        ({"queue": "plain", "priority": 9}, ["plain"]),
    ],
    ids=str,
)
def test_a_lost_message_is_routed_like_the_first_one(
    new_box: NewBox, options: dict[str, Any], queues: list[str]
) -> None:
    box = new_box(ROUTED)
    with box.app.connection_for_write() as connection:  # as workers do when they start
        for queue in box.app.amqp.queues.values():
            queue(connection.default_channel).declare()
    box.apply.apply_async(task_id="a", **options)

    def where() -> list[str]:
        return sorted(name for name in ("orders", "all", "bound", "plain") if box.ids(name))

    assert where() == queues
    box.make_old()
    stranger_behind = json.dumps({"headers": {"published_at": time.time()}})
    for queue in queues:
        box.client.rpush(box.app.durable.priority_list(queue, options.get("priority", 0)), stranger_behind)
    assert box.republish() == {"published": 0, "waiting": 1}, "it is there"
    for queue in queues:
        box.take(queue)
    box.client.zadd(box.outbox.due_key, {"a": 0})
    assert box.republish() == {"published": 1, "waiting": 0}
    assert where() == queues


def test_the_routes_of_the_app_hold_for_a_lost_message(new_box: NewBox) -> None:
    box = new_box(ROUTED)
    task = box.app.task(nothing, name="routed", outbox=True, shared=False)
    with box.app.connection_for_write() as connection:
        box.app.amqp.queues["all"](connection.default_channel).declare()
    task.apply_async(task_id="a")
    assert (box.ids("all"), box.ids("orders")) == ([("a", 1)], [])
    box.take("all")
    box.make_old()
    box.republish()
    assert (box.ids("all"), box.ids("orders")) == ([("a", 2)], [])


# --- On disk ---


@pytest.mark.parametrize("seconds", [0.9, 1, 3])
def test_to_be_on_disk_is_confirmed_by_redis(seconds: float, redis_server: RedisServer) -> None:
    if redis_server.version < (7, 2):
        pytest.skip(f"WAITAOF came with Redis 7.2; this is {redis_server.version}")
    app = Celery("tests", broker=redis_server.url, set_as_current=False)
    durable = install(app, Config(store=redis_server.url, publish_socket_timeout=seconds))
    with closing(durable.store) as client:
        client.config_set("appendfsync", "always")
        durable.wait_until_on_disk()
        client.config_set("appendfsync", "no")
        try:
            with pytest.raises(TimeoutError, match="the store has not written to its disk within"):
                durable.wait_until_on_disk()
        finally:
            client.config_set("appendfsync", "everysec")


def test_an_unchanged_outbox_logs_nothing(box: Box, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        box.apply.apply_async(task_id="a")
        for message in box.take():
            run_task(box.apply, message)
        box.republish()
    assert caplog.records == []
