"""The outbox: a unit is written before it is published, and published again until it has ended."""

import json
import re
import runpy
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, states
from celery.app.trace import trace_task
from celery.exceptions import Retry, SoftTimeLimitExceeded
from kombu.exceptions import OperationalError
from redis import ConnectionError as RedisAwayError
from redis import Redis

import timing
from celery_app import app
from delivery import outbox
from delivery.outbox import DUE, UNITS, Unit
from delivery.publishing import DelayTooLongError, MessageTooLargeError, TimeLimitTooLongError
from settings import priority_lists, settings
from tasks import basic, ledger

LONG_AGO = timing.OUTBOX_BOUND + 60


@pytest.fixture
def redis(client: Redis, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Both Redis in one; the app's own broker URL leads nowhere."""
    monkeypatch.setattr(outbox, "results_client", lambda: client)
    monkeypatch.setattr(outbox, "broker_client", lambda: client)
    return client


def unit(redis: Any, task_id: str) -> dict[str, Any]:
    return dict(json.loads(redis.hget(UNITS, task_id)))


def due_in(redis: Any, task_id: str) -> float:
    return float(redis.zscore(DUE, task_id)) - time.time()


def make_old(redis: Any, task_id: str) -> None:
    """As if it had been published long ago, and its time to be looked at had come."""
    redis.hset(UNITS, task_id, json.dumps({**unit(redis, task_id), "published": time.time() - LONG_AGO}))
    redis.zadd(DUE, {task_id: time.time() - 1})


def republished(redis: Any) -> list[str]:
    """Ids of the units that the reconciler publishes now."""
    found: list[str] = []
    outbox.republish(lambda each: found.append(each.id))
    return found


# --- Publishing ---


def test_a_unit_is_written_and_published(redis: Any, producer: Any) -> None:
    ledger.apply.apply_async(("a",), task_id="a", priority=3, producer=producer)
    (message,) = redis.lrange(priority_lists("low")[3], 0, -1)
    assert json.loads(message)["headers"]["id"] == "a"
    assert unit(redis, "a")["headers"]["task"] == "tasks.ledger.apply"
    assert due_in(redis, "a") == pytest.approx(timing.OUTBOX_BOUND, abs=10)


def test_a_task_without_outbox_is_only_published(redis: Any, producer: Any) -> None:
    basic.add.apply_async((1, 2), producer=producer)
    assert redis.llen(priority_lists("low")[5]) == 1
    assert not redis.exists(UNITS)


def test_the_retries_of_one_publish_are_not_those_of_the_next(producer: Any, redis: Any) -> None:
    def retries() -> object:
        return producer.connection.transport_options["max_retries"]

    basic.add.apply_async((1, 2), producer=producer)
    assert retries() == app.conf.task_publish_retry_policy["max_retries"], "kombu leaves them there"
    basic.add.apply_async((1, 2), producer=producer, retry=False)
    assert retries() == 0


def test_a_publish_that_fails_is_the_reconcilers_to_repeat(redis: Any) -> None:
    assert ledger.apply.apply_async(("a",), task_id="a").id == "a"  # nothing listens at the app's broker
    assert republished(redis) == ["a"]
    assert republished(redis) == [], "it has been published now"
    assert due_in(redis, "a") == pytest.approx(timing.OUTBOX_BOUND, abs=10)


def test_without_the_outbox_the_caller_gets_the_error(redis: Any) -> None:
    with pytest.raises(OperationalError):
        basic.add.apply_async((1, 2), retry=False)


def test_later_asks_no_broker(redis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("asked the broker")

    monkeypatch.setattr(Celery, "connection_for_write", never)
    ledger.apply.apply_async(("a",), task_id="a", later=True)
    assert republished(redis) == ["a"]


def test_later_needs_the_outbox() -> None:
    with pytest.raises(ValueError, match=r"later: tasks.basic.add has no outbox; give it outbox=True"):
        basic.add.apply_async((1, 2), later=True)


def test_what_cannot_be_written_is_not_published(producer: Any, redis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> None:
        raise RedisAwayError("away")

    monkeypatch.setattr(outbox, "results_client", away)
    with pytest.raises(OperationalError):
        ledger.apply.apply_async(("a",), producer=producer)
    assert not redis.exists(*priority_lists("low"))


@pytest.mark.parametrize("task", [basic.add, ledger.apply], ids=["without", "with"])
def test_a_countdown_beyond_the_visibility_timeout_is_refused(task: Any, redis: Any) -> None:
    task_name = task.name.replace(".", r"\.")
    with pytest.raises(DelayTooLongError, match=rf"{task_name}: due in \d+ s; .* is {timing.MAX_DELAY} s at most"):
        task.apply_async((1, 2), countdown=timing.MAX_DELAY + 5)
    assert not redis.exists(UNITS)


@pytest.mark.parametrize("options", [{}, {"later": True}], ids=["now", "later"])
def test_what_is_too_large_is_refused_before_it_is_written(redis: Any, producer: Any, options: dict[str, Any]) -> None:
    limit = settings.max_message_bytes
    with pytest.raises(MessageTooLargeError, match=rf"tasks\.ledger\.apply: .* MAX_MESSAGE_BYTES is {limit}"):
        ledger.apply.apply_async(("x" * limit,), producer=producer, **options)
    assert not redis.exists(UNITS)


def test_what_is_published_is_not_too_large_for_a_worker(redis: Any, producer: Any) -> None:
    for less in range(0, 4000, 50):  # the largest that is not refused
        try:
            basic.echo.apply_async(("x" * (settings.max_message_bytes * 3 // 4 - less),), producer=producer)
        except MessageTooLargeError:
            continue
        break
    (message,) = redis.lrange(priority_lists("low")[5], 0, -1)
    more = len(', "redelivered": true, "redelivered_at": 1795602119.123456, "unknown_since": 1795602119.123456')
    assert 0.99 * settings.max_message_bytes < len(message) <= settings.max_message_bytes - more


def test_a_time_limit_beyond_the_visibility_timeout_is_refused(redis: Any) -> None:
    with pytest.raises(TimeLimitTooLongError, match=r"tasks\.ledger\.apply: time_limit is 95 s; .* less than 90 s"):
        ledger.apply.apply_async(("a",), time_limit=95)
    assert not redis.exists(UNITS)


# --- The end of a unit ---


@pytest.mark.parametrize(
    ("state", "ends"),
    [(states.SUCCESS, True), (states.FAILURE, True), (states.IGNORED, True), (states.RETRY, False), (None, False)],
)
def test_states_that_end_a_unit(redis: Any, state: str | None, ends: bool) -> None:
    ledger.apply.apply_async(("a",), task_id="a", later=True)
    outbox.finished(task=ledger.apply, task_id="a", state=state)
    assert bool(redis.hexists(UNITS, "a")) is not ends
    assert (redis.zscore(DUE, "a") is not None) is not ends


@pytest.fixture
def unstored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks store nothing: the app's own result backend leads nowhere."""
    monkeypatch.setattr(ledger.apply, "store_errors_even_if_ignored", False)
    monkeypatch.setattr(ledger.join, "store_errors_even_if_ignored", False)


def run_unit(task: Any, task_id: str, *args: Any, **request: Any) -> Any:
    """As a worker's process does."""
    request = {"id": task_id, "delivery_info": {}, "hostname": "low@test", **request}
    return trace_task(task, task_id, args, {}, request, app=app)


@pytest.mark.parametrize("error", [RedisAwayError, OperationalError])
def test_a_unit_whose_successor_could_not_be_written_has_not_ended(
    redis: Any, monkeypatch: pytest.MonkeyPatch, unstored: None, error: type[Exception]
) -> None:
    def away(_: Unit) -> None:
        raise error("away")

    monkeypatch.setattr(ledger, "results_client", lambda: redis)
    ledger.apply.apply_async(("a",), task_id="a", later=True)
    chain = [ledger.apply.si("b").set(task_id="b")]
    with monkeypatch.context() as patch:
        patch.setattr(Unit, "write", away)
        run_unit(ledger.apply, "a", "a", chain=list(chain))
    assert redis.hexists(UNITS, "a")
    run_unit(ledger.apply, "a", "a", chain=list(chain))
    assert redis.hkeys(UNITS) == ["b"]
    assert redis.llen(ledger.EFFECTS) == 1, "the second run was for the chain alone"


def test_a_unit_that_could_not_be_counted_in_its_chord_has_not_ended(
    redis: Any, monkeypatch: pytest.MonkeyPatch, unstored: None
) -> None:
    monkeypatch.setattr(ledger, "results_client", lambda: redis)
    ledger.apply.apply_async(("a",), task_id="a", later=True)
    chord = {**ledger.join.s("b"), "chord_size": 2}  # the app's own results lead nowhere
    run_unit(ledger.apply, "a", "a", chord=chord, group="g", group_index=0)
    assert redis.llen(ledger.EFFECTS) == 1
    assert redis.hexists(UNITS, "a")


def test_a_unit_that_meets_redis_away_is_tried_again(
    redis: Any, monkeypatch: pytest.MonkeyPatch, unstored: None
) -> None:
    def away() -> None:
        raise RedisAwayError("away")

    ledger.join.apply_async(([], "a"), task_id="a", later=True)
    monkeypatch.setattr(ledger, "results_client", away)
    run_unit(ledger.join, "a", [], "a")
    assert unit(redis, "a")["headers"]["retries"] == 1


@pytest.mark.parametrize(("retries", "again"), [(0, True), (2, True), (3, False)])
def test_a_unit_over_its_soft_limit_is_tried_three_times(
    redis: Any, monkeypatch: pytest.MonkeyPatch, unstored: None, retries: int, again: bool
) -> None:
    def slow() -> None:
        raise SoftTimeLimitExceeded

    ledger.join.apply_async(([], "a"), task_id="a", later=True)
    monkeypatch.setattr(ledger, "results_client", slow)
    run_unit(ledger.join, "a", [], "a", retries=retries)
    assert redis.hexists(UNITS, "a") is again


@pytest.fixture
def new_task() -> Iterator[Callable[..., Any]]:
    """Makes tasks of the app for a test: `new_task(function, **options)`."""
    made: list[Any] = []

    def make(function: Callable[..., Any], **options: Any) -> Any:
        made.append(app.task(function, shared=False, **options))
        return made[-1]

    yield make
    for task in made:
        app.tasks.unregister(task.name)


def test_a_unit_has_its_own_errors_and_retries_besides(new_task: Callable[..., Any]) -> None:
    def fail(what: type[Exception]) -> None:
        raise what

    named = new_task(fail, outbox=True, autoretry_for=(KeyError,), max_retries=1)
    assert named.max_retries == 1
    for error in (KeyError, RedisAwayError):
        with pytest.raises(Retry):
            named.apply(args=(error,), throw=True)
    with pytest.raises(ZeroDivisionError):
        named.apply(args=(ZeroDivisionError,), throw=True)


def test_a_unit_that_is_replaced_goes_on_under_its_id(
    redis: Any, unstored: None, monkeypatch: pytest.MonkeyPatch, new_task: Callable[..., Any]
) -> None:
    def replace(self: Any) -> None:
        self.replace(ledger.apply.si("b"))

    replaced = new_task(replace, bind=True, outbox=True)
    replaced.apply_async(task_id="a", later=True)
    run_unit(replaced, "a")
    assert unit(redis, "a")["name"] == "tasks.ledger.apply"
    monkeypatch.setattr(ledger, "results_client", lambda: redis)
    run_unit(ledger.apply, "a", "b")
    assert not redis.exists(UNITS)


def test_what_never_was_in_the_outbox_ends_without_a_trace(redis: Any) -> None:
    outbox.ended("unknown")
    outbox.ended("")
    assert not redis.exists(UNITS, DUE)


def test_redis_away_at_the_end_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    outbox.ended("a")  # the app's Redis leads nowhere


def test_a_run_that_starts_gets_its_time(redis: Any) -> None:
    ledger.apply.apply_async(("a",), task_id="a", later=True)
    outbox.started(task=ledger.apply, task_id="a")
    assert republished(redis) == []
    outbox.started(task=ledger.apply, task_id="unknown")
    assert redis.zcard(DUE) == 1


# --- The reconciler ---


def test_an_old_unit_is_published_again_with_its_id_and_options(redis: Any, producer: Any) -> None:
    ledger.apply.apply_async(("a", 0.5), task_id="a", priority=2, producer=producer)
    redis.delete(*priority_lists("low"))  # its message is lost
    make_old(redis, "a")
    sent: list[Unit] = []
    assert outbox.republish(sent.append) == {"published": 1, "waiting": 0}
    (one,) = sent
    assert (one.id, one.queue, one.options["priority"], one.body[0]) == ("a", "low", 2, ["a", 0.5])


def test_it_holds_back_while_its_queue_has_not_come_to_it(redis: Any, producer: Any) -> None:
    ledger.apply.apply_async(("a",), task_id="a", priority=2, producer=producer)
    make_old(redis, "a")
    (message,) = redis.lrange(priority_lists("low")[2], 0, -1)
    older = json.loads(message)
    older["headers"]["published_at"] = time.time() - LONG_AGO - 10
    redis.rpush(priority_lists("low")[2], json.dumps(older))
    assert outbox.republish(lambda _: pytest.fail("published")) == {"published": 0, "waiting": 1}
    assert due_in(redis, "a") == pytest.approx(timing.OUTBOX_RECHECK, abs=5)
    redis.rpop(priority_lists("low")[2])  # now the next in line is younger: its own message must be gone
    make_old(redis, "a")
    assert republished(redis) == ["a"]


@pytest.mark.parametrize("head", ["}{", "{}", '{"headers": {}}', '{"headers": {"published_at": "now"}}'])
def test_a_head_without_a_stamp_explains_nothing(redis: Any, producer: Any, head: str) -> None:
    ledger.apply.apply_async(("a",), task_id="a", priority=2, producer=producer)
    make_old(redis, "a")
    redis.rpush(priority_lists("low")[2], head)
    assert republished(redis) == ["a"]


def test_more_than_a_batch_is_published_and_none_twice(redis: Any) -> None:
    for number in range(2 * outbox.BATCH + 7):
        ledger.apply.apply_async((f"u{number}",), task_id=f"u{number}", later=True)
    found = republished(redis)
    assert len(found) == len(set(found)) == 2 * outbox.BATCH + 7


def test_a_unit_that_ended_is_forgotten(redis: Any) -> None:
    redis.zadd(DUE, {"gone": 0})
    assert republished(redis) == []
    assert not redis.exists(DUE)


def test_a_unit_that_ends_while_it_is_published_does_not_come_back(redis: Any) -> None:
    ledger.apply.apply_async(("a",), task_id="a", later=True)
    outbox.republish(lambda each: outbox.ended(each.id))
    assert not redis.exists(UNITS)


def test_a_broker_that_goes_away_loses_no_unit(redis: Any) -> None:
    ledger.apply.apply_async(("a",), task_id="a", later=True)

    def away(_: Unit) -> None:
        raise OperationalError("away")

    with pytest.raises(OperationalError):
        outbox.republish(away)
    assert redis.hexists(UNITS, "a")
    assert due_in(redis, "a") < 1, "as soon as the broker is back"


def test_a_broker_that_does_not_tell_its_heads_delays_no_unit(redis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> None:
        raise RedisAwayError("away")

    ledger.apply.apply_async(("a",), task_id="a", later=True)
    monkeypatch.setattr(outbox, "broker_client", away)
    with pytest.raises(RedisAwayError):
        republished(redis)
    assert due_in(redis, "a") < 1


def test_a_unit_that_cannot_be_published_stands_in_nobodys_way(redis: Any) -> None:
    for name in ("a", "b", "c"):
        ledger.apply.apply_async((name,), task_id=name, later=True)
    found: list[str] = []

    def publish(each: Unit) -> None:
        if each.id == "b":
            raise KeyError("its queue is gone")
        found.append(each.id)

    assert outbox.republish(publish) == {"published": 2, "waiting": 0}
    assert found == ["a", "c"]
    assert unit(redis, "b")["published"] == 0
    assert due_in(redis, "b") == pytest.approx(timing.OUTBOX_BOUND, abs=10), "it is tried again, later"


@pytest.mark.parametrize("change", [{"options": {"priority": "urgent"}}, {"headers": {}}, {"of a later release": 1}])
def test_an_entry_that_is_no_unit_stands_in_nobodys_way(redis: Any, change: dict[str, Any]) -> None:
    for name in ("a", "b"):
        ledger.apply.apply_async((name,), task_id=name, later=True)
    redis.hset(UNITS, "a", json.dumps({**unit(redis, "a"), **change}))
    assert republished(redis) == ["b"]
    assert redis.hexists(UNITS, "a"), "whoever knows what it is may mend it"


def test_to_be_on_disk_is_confirmed_by_redis(redis: Any) -> None:
    ledger.apply.apply_async(("a",), task_id="a", later=True)
    outbox.wait_until_on_disk()
    redis.config_set("appendfsync", "no")
    try:
        with pytest.raises(TimeoutError, match="redis-results has not written to its disk"):
            outbox.wait_until_on_disk()
    finally:
        redis.config_set("appendfsync", "everysec")


def test_the_example_of_the_page(redis: Any, tmp_path: Path) -> None:
    """docs/delivery.md, In your own tasks: called twice, its effect comes once."""
    page = (Path(__file__).parents[2] / "docs/delivery.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (tmp_path / "example.py").write_text(block)
    example = runpy.run_path(str(tmp_path / "example.py"))
    credit = example["credit"]
    assert credit.outbox
    credit._orig_run.__globals__["results_client"] = lambda: redis
    for _ in range(2):
        credit._orig_run("payment-1", "A", 500)
    assert redis.get("balance:A") == "500"
