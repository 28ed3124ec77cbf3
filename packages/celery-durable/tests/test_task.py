"""The settings of a task, its base class and its options override the library's defaults."""

from typing import Any

import celery
import pytest
from celery import Celery
from celery.app.trace import trace_task
from celery.exceptions import MaxRetriesExceededError, Reject, Retry, SoftTimeLimitExceeded
from kombu.exceptions import OperationalError
from redis import ConnectionError as RedisAwayError
from redis.exceptions import OutOfMemoryError

from celery_durable import Config, install
from celery_durable.task import MAX_BACKOFF, MAX_RETRIES

from .conftest import NewApp
from .project import SHORT

TRANSIENT = [RedisAwayError, OutOfMemoryError, OperationalError, SoftTimeLimitExceeded]


class Base(celery.Task):
    """Sets the errors that it is retried for, and how."""

    abstract = True
    outbox = True
    autoretry_for = (KeyError,)
    max_retries = 2
    retry_backoff = 3
    retry_backoff_max = 7
    retry_jitter = False


def fail(error: type[Exception]) -> None:
    raise error


class Failing(Base):
    """Class-based."""

    name = "failing"

    def run(self, error: type[Exception]) -> None:
        raise error


def retried(task: Any, error: type[Exception], retries: int = 0) -> float:
    """The delay of the retry after an error. Raises the task's error if it is not retried."""
    with pytest.raises(Retry) as retry:
        task.apply((error,), retries=retries, throw=True)
    assert isinstance(retry.value.exc, error)
    return float(retry.value.when)


# --- The outbox: settings of the task are kept ---


@pytest.mark.parametrize("how", ["base=", "app.Task", "class", "before install", "before install, finalized"])
def test_what_a_base_class_says_of_retries_is_kept(new_app: NewApp, how: str) -> None:
    app = Celery("base", set_as_current=False, broker="redis://127.0.0.1:1/0", task_cls=Base if "Task" in how else None)
    config = Config(store="redis://127.0.0.1:1/0")
    if "before" not in how:
        install(app, config)
    if how == "class":
        task = app.register_task(Failing())
    else:
        task = app.task(fail, name="fails", shared=False, **({} if how == "app.Task" else {"base": Base}))
    if "before" in how:
        if "finalized" in how:
            app.finalize()
        install(app, config)
        app.finalize()
    assert (task.max_retries, task.outbox) == (2, True)
    for error in (KeyError, *TRANSIENT):
        assert [retried(task, error, retries) for retries in (0, 1)] == [3, 6], "its own backoff"
        with pytest.raises(error):
            task.apply((error,), retries=2, throw=True)
    with pytest.raises(ZeroDivisionError):
        task.apply((ZeroDivisionError,), throw=True)


@pytest.mark.parametrize("number", [0, 1, None])
@pytest.mark.parametrize("where", ["option", "retry_kwargs"])
def test_how_often_it_is_retried_is_what_the_task_says(app: Any, where: str, number: int | None) -> None:
    options: dict[str, Any] = {"max_retries": number}
    options = options if where == "option" else {"retry_kwargs": options}
    task = app.task(fail, shared=False, outbox=True, **options)
    allowed = 3 if number is None and where == "retry_kwargs" else number  # Celery takes its default for None
    for retries in range(4):
        if allowed is None or retries < allowed:
            retried(task, RedisAwayError, retries)
        else:
            with pytest.raises(RedisAwayError):
                task.apply((RedisAwayError,), retries=retries, throw=True)


def test_how_soon_it_is_retried_is_what_the_task_says(new_app: NewApp) -> None:
    app = new_app(max_delay=60, visibility_timeout=70, republish_after=80)
    for options, delays in (
        ({"retry_kwargs": {"countdown": 5}}, [5, 5, 5]),
        ({"default_retry_delay": 4}, [4, 4, 4]),
        ({"retry_backoff": 2, "retry_jitter": False}, [2, 4, 8]),
        ({"retry_backoff": True, "retry_backoff_max": 3, "retry_jitter": False}, [1, 2, 3]),
    ):
        task = app.task(fail, name=str(options), shared=False, outbox=True, **options)
        assert [retried(task, RedisAwayError, retries) for retries in range(3)] == delays


def test_errors_that_are_no_reason_to_retry_stay_so(app: Any) -> None:
    task = app.task(fail, shared=False, outbox=True, dont_autoretry_for=(RedisAwayError,))
    with pytest.raises(RedisAwayError):
        task.apply((RedisAwayError,), throw=True)
    retried(task, OutOfMemoryError)


def test_options_of_register_task_are_kept(app: Any) -> None:
    class Plain(celery.Task):
        name = "plain"
        outbox = True

        def run(self, error: type[Exception]) -> None:
            raise error

    options = {"autoretry_for": (KeyError,), "retry_backoff": 4, "retry_jitter": False, "max_retries": 1}
    task = app.register_task(Plain(), **options)
    assert retried(task, KeyError) == retried(task, RedisAwayError) == 4


def test_a_task_in_the_outbox_is_retried_unless_it_sets_its_own_retries(new_app: NewApp) -> None:
    app = new_app(max_delay=60, visibility_timeout=70, republish_after=80)
    task = app.task(fail, shared=False, outbox=True)
    for error in TRANSIENT:
        assert 0 < retried(task, error) <= 1
    for retries in range(10, MAX_RETRIES):
        assert 0 < retried(task, RedisAwayError, retries) <= MAX_BACKOFF
    with pytest.raises(RedisAwayError):
        task.apply((RedisAwayError,), retries=MAX_RETRIES, throw=True)
    with pytest.raises(ZeroDivisionError):
        task.apply((ZeroDivisionError,), throw=True)


def test_its_default_retry_delay_is_within_the_longest_delay(app: Any) -> None:
    assert app.durable.config.max_delay == SHORT["max_delay"] < MAX_BACKOFF
    task = app.task(fail, shared=False, outbox=True)
    assert max(retried(task, RedisAwayError, retries) for retries in range(5, MAX_RETRIES)) <= SHORT["max_delay"]


def test_a_task_without_the_outbox_gets_no_defaults(app: Any) -> None:
    task = app.task(fail, shared=False, max_retries=1)
    with pytest.raises(RedisAwayError):
        task.apply((RedisAwayError,), throw=True)
    assert not hasattr(task, "_orig_run")


@pytest.mark.parametrize(("retries", "again"), [(0, True), (2, True), (3, False)])
def test_a_soft_time_limit_is_tried_three_times(app: Any, retries: int, again: bool) -> None:
    task = app.task(fail, shared=False, outbox=True)
    if again:
        retried(task, SoftTimeLimitExceeded, retries)
    else:
        with pytest.raises(SoftTimeLimitExceeded):
            task.apply((SoftTimeLimitExceeded,), retries=retries, throw=True)


# --- Retries ---


@pytest.mark.parametrize(
    ("options", "delay"),
    [({}, 0.2), ({"countdown": 0}, 0.1), ({"countdown": 0.05}, 0.1), ({"countdown": 3}, 3)],
    ids=str,
)
def test_a_retry_is_not_sooner_than_the_shortest_delay(app: Any, options: dict[str, Any], delay: float) -> None:
    def again(self: Any) -> None:
        raise self.retry(**options)

    task = app.task(again, bind=True, shared=False)
    with pytest.raises(Retry) as retry:
        task.apply(throw=True)
    assert retry.value.when == delay


def test_the_retry_delay_of_a_task_overrides_that_of_the_library(app: Any) -> None:
    def again(self: Any) -> None:
        raise self.retry()

    task = app.task(again, bind=True, shared=False, default_retry_delay=2)
    with pytest.raises(Retry) as retry:
        task.apply(throw=True)
    assert retry.value.when == 2


def test_retries_that_are_used_up_raise_what_celery_raises(app: Any) -> None:
    def again(self: Any) -> None:
        raise self.retry()

    task = app.task(again, bind=True, shared=False, max_retries=1)
    with pytest.raises(MaxRetriesExceededError):
        task.apply(throw=True, retries=1)


def test_a_retry_that_cannot_be_published_keeps_its_message(new_app: NewApp) -> None:
    """Celery would reject the message, and the task would be gone."""

    def again(self: Any) -> None:
        raise self.retry()

    app = new_app({"broker_url": "redis://127.0.0.1:1/0", "task_publish_retry": False})
    task = app.task(again, bind=True, shared=False)
    reject = trace_task(task, "a", (), {}, {"id": "a", "delivery_info": {}}, app=app).info.retval
    assert isinstance(reject, Reject)
    assert reject.requeue
    assert isinstance(reject.reason, OperationalError)
