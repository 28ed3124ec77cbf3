"""Of all messages with the same due time, one runs."""

import json
import logging
import time
from typing import Any

import pytest

from celery_durable import PeriodicTask
from celery_durable.ticks import KEPT_FOR

from .conftest import NewApp
from .project import run_task
from .redis_server import RedisServer

DUE = time.time() // 60 * 60


@pytest.fixture
def tick(app: Any) -> Any:
    """A periodic task that counts its runs."""
    runs: list[str] = []

    def run(self: Any) -> None:
        runs.append(self.request.id)

    task = app.task(run, bind=True, base=PeriodicTask, name="tick", shared=False, ignore_result=True, runs=runs)
    app.finalize()
    return app.tasks[task.name]


def message(task_id: str, due: float = DUE, entry: str = "report") -> dict[str, Any]:
    return {"id": task_id, "beat_entry": entry, "beat_due": due}


def test_the_other_beats_message_is_ignored_and_logged(tick: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert run_task(tick, message("one")) == "SUCCESS"
    with caplog.at_level(logging.INFO):
        assert run_task(tick, message("two")) == "IGNORED"
    assert f"tick ignored: entry report has another message for {DUE:.3f} (two beats?)" in caplog.text
    assert run_task(tick, message("one")) == "SUCCESS", "redelivered, or retried"
    assert run_task(tick, message("three", DUE + 60)) == "SUCCESS"
    assert run_task(tick, message("four", entry="other")) == "SUCCESS"
    assert tick.runs == ["one", "one", "three", "four"]


def test_a_call_without_a_due_time_always_runs(tick: Any, client: Any) -> None:
    for _ in range(2):
        assert run_task(tick, {"id": "without a due time"}) == "SUCCESS"
    tick.apply()
    assert client.keys() == []


def test_a_message_that_cannot_claim_its_due_time_is_tried_again(
    new_app: NewApp, redis_server: RedisServer, other_redis: RedisServer
) -> None:
    app = new_app({"broker_url": other_redis.url})
    ran: list[int] = []

    def run() -> None:
        ran.append(1)

    task = app.task(run, base=PeriodicTask, shared=False, ignore_result=True)
    app.finalize()
    with redis_server.stopped():
        assert run_task(task, message("one")) == "RETRY"
    assert not ran
    (retry,) = (json.loads(payload)["headers"] for payload in other_redis.client.lrange("celery", 0, -1))
    assert run_task(task, retry) == "SUCCESS"
    assert run_task(task, message("two")) == "IGNORED"
    assert ran == [1]


def test_old_due_times_are_forgotten(app: Any, client: Any) -> None:
    ticks = app.durable.ticks
    ticks.claim("report", DUE - 2 * KEPT_FOR, "old")
    ticks.claim("report", DUE, "new")
    assert client.zrange(ticks.key("report"), 0, -1) == [f"{DUE:.3f} new"]
    assert KEPT_FOR < client.ttl(ticks.key("report")) <= 2 * KEPT_FOR


def test_a_due_time_in_the_future_forgets_nothing(app: Any, client: Any) -> None:
    """Such as that of a beat whose clock is ahead."""
    ticks = app.durable.ticks
    ticks.claim("report", DUE, "one")
    ticks.claim("report", DUE + 3 * KEPT_FOR, "ahead")
    assert not ticks.claim("report", DUE, "two")


def test_due_times_that_come_again_are_forgotten(app: Any) -> None:
    ticks = app.durable.ticks
    for due in (DUE, DUE + 60):
        assert ticks.claim("report", due, "one")
    ticks.forget_after(DUE + 1, ["report", "other"])
    assert not ticks.claim("report", DUE, "two")
    assert ticks.claim("report", DUE + 60, "two")
