"""Chords that never complete are found, logged and counted; Celery waits for them without logging anything."""

import logging
import time
from typing import Any

import pytest
from celery import chord, group
from redis import RedisError

from celery_durable.chords import BATCH

from .conftest import NewApp
from .project import run_message
from .redis_server import RedisServer


class Chords:
    """An app with a chord's tasks, whose chords are overdue after ten minutes."""

    def __init__(self, app: Any, client: Any) -> None:
        self.app, self.client, self.chords = app, client, app.durable.chords

        def add(*args: int) -> int:
            return sum(args)

        def total(numbers: list[int]) -> int:
            return sum(numbers)

        self.add = app.task(add, name="add", shared=False)
        self.total = app.task(total, name="total", shared=False)
        app.finalize()

    def publish(self, members: int = 2) -> Any:
        header = group(self.add.s(number) for number in range(members))
        return chord(header, self.total.s(), app=self.app).apply_async()

    def take(self) -> list[str]:
        payloads = list(reversed(self.client.lrange("celery", 0, -1)))
        self.client.delete("celery")
        return payloads

    def wait_for_all(self, seconds: float = 601) -> None:
        """Move the due times of all chords into the past by so much."""
        for key in (self.chords.key, self.chords.overdue_key):
            for member, score in self.client.zrange(key, 0, -1, withscores=True):
                self.client.zadd(key, {member: score - seconds})

    def reconcile(self) -> int:
        return int(self.app.durable.reconcile()["overdue_chords"])


@pytest.fixture
def chords(new_app: NewApp, client: Any) -> Chords:
    return Chords(new_app(chord_overdue_after=600), client)


def test_a_chord_has_its_size_before_it_is_monitored(chords: Chords, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, sizes = chords.app.backend, []

    def begun(group_id: str) -> None:
        sizes.append(backend.client.get(backend.get_key_for_group(group_id, ".s")))

    monkeypatch.setattr(chords.chords, "begun", begun)
    chords.publish(members=2)
    assert sizes == [b"2"]


def test_a_chord_that_ends_in_time_leaves_nothing(chords: Chords, caplog: pytest.LogCaptureFixture) -> None:
    result = chords.publish()
    assert chords.reconcile() == 0
    for payload in (*chords.take(), *chords.take()):
        run_message(chords.app, payload)
    (callback,) = chords.take()
    run_message(chords.app, callback)
    assert result.get(timeout=10) == 1
    chords.wait_for_all()
    assert chords.reconcile() == 0
    assert not chords.client.exists(chords.chords.key, chords.chords.overdue_key)
    assert caplog.records == []


def test_a_chord_whose_member_was_lost_is_logged_once_and_counted(
    chords: Chords, caplog: pytest.LogCaptureFixture
) -> None:
    chords.publish()
    run_message(chords.app, chords.take()[0])
    chords.wait_for_all(599)
    assert chords.reconcile() == 0
    chords.wait_for_all(2)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert chords.reconcile() == 1
            chords.wait_for_all()
    (record,) = caplog.records
    assert "has not ended 601 s after it was published" in record.getMessage()
    assert "python -m celery_durable dlq" in record.getMessage()


def test_a_chord_that_ends_late_is_counted_no_longer(chords: Chords) -> None:
    chords.publish()
    chords.wait_for_all()
    assert chords.reconcile() == 1
    for payload in chords.take():
        run_message(chords.app, payload)
    chords.wait_for_all(31)
    assert chords.reconcile() == 0


def test_many_chords_are_checked_in_batches(chords: Chords) -> None:
    for number in range(BATCH + 3):
        chords.chords.begun(f"{number}")
        chords.client.set(chords.app.backend.get_key_for_group(f"{number}", ".s"), 2)
    chords.wait_for_all()
    assert [chords.reconcile(), chords.reconcile()] == [BATCH, BATCH + 3]


def test_a_chord_can_be_published_while_the_store_is_unreachable(
    new_app: NewApp, client: Any, other_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    chords = Chords(new_app(store=other_redis.url), client)
    with other_redis.stopped():
        chords.publish()
        with pytest.raises(RedisError):
            chords.chords.look(chords.app.backend)
    assert len(chords.take()) == 2
    assert "is not monitored: " in caplog.text


def test_an_app_without_chords_can_be_reconciled(new_app: NewApp) -> None:
    """Also with another result backend than Redis, whose chords the library does not watch."""
    app = new_app({"result_backend": "cache+memory://"})
    assert app.durable.reconcile() == {"published": 0, "waiting": 0, "overdue_chords": 0}


def test_how_long_a_chord_may_take_is_counted_from_its_publishing(chords: Chords) -> None:
    before = time.time()
    chords.publish()
    (score,) = (score for _, score in chords.client.zrange(chords.chords.key, 0, -1, withscores=True))
    assert before + 600 <= score <= time.time() + 600
