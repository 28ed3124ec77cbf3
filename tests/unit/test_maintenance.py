"""Beat's tasks and its schedule."""

import json
import time

import pytest
from redis import Redis

from beat_schedule import ENTRIES
from celery_app import app, durable
from celery_durable import Durable, PeriodicTask
from tasks import maintenance


@pytest.fixture
def client(client: Redis, monkeypatch: pytest.MonkeyPatch) -> Redis:
    """One Redis for broker and results."""
    monkeypatch.setattr(Durable, "store", client)
    monkeypatch.setattr(Durable, "broker", client)
    return client


def register(client: Redis, worker: str, seconds_ago: float) -> None:
    entry = {"queues": ["low"], "concurrency": 2, "started": 0, "heartbeat": time.time() - seconds_ago}
    client.hset(durable.broker_key("workers"), worker, json.dumps(entry))


@pytest.mark.parametrize("name", ENTRIES)
def test_each_entry_is_a_known_task_on_a_known_queue_and_expires(name: str) -> None:
    entry = ENTRIES[name]
    app.loader.import_default_modules()
    assert entry["task"] in app.tasks
    assert entry["options"]["queue"] in app.amqp.queues
    assert entry["options"]["priority"] in range(10)
    assert 0 < entry["options"]["expires"] <= entry["schedule"].run_every.total_seconds()


@pytest.mark.parametrize("name", ENTRIES)
def test_each_entry_s_task_is_guarded_against_a_second_beat(name: str) -> None:
    app.loader.import_default_modules()
    assert isinstance(app.tasks[ENTRIES[name]["task"]], PeriodicTask)


def test_a_canary_stores_its_wait(client: Redis) -> None:
    published = time.time() - 5
    maintenance.canary.apply(headers={"published_at": published}, routing_key="low")
    sign = json.loads(client.get("canary:low"))
    assert 5 <= sign["waited"] < 60
    assert sign["ran"] >= published + 5
    assert 0 < client.ttl("canary:low") <= maintenance.KEPT_FOR


def test_the_report_is_returned_and_kept(client: Redis) -> None:
    client.set("canary:high", json.dumps({"ran": 1.0}))
    register(client, "low@alive", 1)
    register(client, "low@killed", 100)
    report = maintenance.report.apply().get()
    assert report["canaries"] == {"high": {"ran": 1.0}, "low": None}
    assert report["workers"] == {"alive": 1, "gone": ["low@killed"]}
    assert report["index"]["documents"] == 0
    assert json.loads(client.get("report:last")) == report
