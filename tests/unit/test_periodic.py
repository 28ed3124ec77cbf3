"""Two beats do no harm: of all messages for one due time, one runs."""

import logging
from collections.abc import Iterator

import pytest
from redis import Redis

from celery_app import app
from delivery import periodic
from delivery.periodic import PeriodicTask, claim

TICK = {"beat_entry": "report", "beat_due": 1795400000.0}


@pytest.fixture
def client(client: Redis, monkeypatch: pytest.MonkeyPatch) -> Redis:
    monkeypatch.setattr(periodic, "results_client", lambda: client)
    return client


@pytest.fixture
def tick() -> Iterator[PeriodicTask]:
    """A periodic task that counts its runs."""

    @app.task(base=PeriodicTask, name="unit.tick", runs=0)
    def tick() -> str:
        tick.runs += 1
        return "ran"

    yield tick
    app.tasks.unregister("unit.tick")


def test_the_first_to_claim_may_run_and_may_be_redelivered(client: Redis) -> None:
    assert claim(client, "report", 60.0, "task-1")
    assert claim(client, "report", 60.0, "task-1")
    assert not claim(client, "report", 60.0, "task-2")
    assert claim(client, "report", 120.0, "task-2")
    assert claim(client, "other", 60.0, "task-3")
    assert client.get("once:beat:report:60.000") == "task-1"
    assert 0 < client.ttl("once:beat:report:60.000") <= periodic.CLAIM_TTL


def test_the_other_beat_s_message_is_ignored_and_says_so(
    client: Redis, tick: PeriodicTask, caplog: pytest.LogCaptureFixture
) -> None:
    assert tick.apply(task_id="one", headers=TICK).get() == "ran"
    with caplog.at_level(logging.INFO):
        assert tick.apply(task_id="two", headers=TICK).state == "IGNORED"
    assert "unit.tick ignored: another message of entry report for 1795400000.000" in caplog.text
    assert tick.apply(task_id="one", headers=TICK).get() == "ran"
    assert tick.apply(task_id="three", headers={**TICK, "beat_due": 1795400060.0}).get() == "ran"
    assert tick.runs == 3


def test_a_call_by_hand_always_runs(client: Redis, tick: PeriodicTask) -> None:
    assert [tick.apply().get(), tick.apply().get(), tick()] == ["ran"] * 3
    assert client.keys() == []
