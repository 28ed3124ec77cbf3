"""Beat sends what is due, even if its clock is set, the broker is down, or beat is killed."""

import json
import logging
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import current_app
from celery.schedules import BaseSchedule, crontab
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from celery_durable import PeriodicTask, every, scheduler
from celery_durable.scheduler import Scheduler
from celery_durable.signals import beat_sent, beat_ticked

from .conftest import NewApp
from .project import run_task
from .redis_server import RedisServer

HOUR = 3600


class Clock:
    """Wall clock and monotonic clock of beat. It starts at a whole hour."""

    def __init__(self) -> None:
        self.wall = time.time() // HOUR * HOUR
        self.steady = 1000.0

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.wall, UTC)

    def pass_by(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    times = SimpleNamespace(time=lambda: clock.wall, monotonic=lambda: clock.steady)
    monkeypatch.setattr(scheduler, "time", times)
    return clock


class Beat:
    """A beat whose clock the test advances."""

    def __init__(self, app: Any, clock: Clock, file: Path, entries: dict[str, Any]) -> None:
        self.app, self.clock = app, clock
        app.now = clock.now
        app.set_current()  # Celery forgets the app of an entry that it has written to its file
        app.conf.beat_schedule = entries
        self.scheduler = Scheduler(app, schedule_filename=str(file))

    def run(self, seconds: float) -> None:
        """Run it as Celery's Service does, for so long on its clock."""
        end = self.clock.steady + seconds
        while self.clock.steady < end:
            delay = max(0.0, self.scheduler.tick()) + 0.001
            self.clock.pass_by(min(delay, end - self.clock.steady))


NewBeat = Callable[..., Beat]


@pytest.fixture
def new_beat(new_app: NewApp, clock: Clock, tmp_path: Path) -> Iterator[NewBeat]:
    """Makes beats with the same clock and, by default, the same file: `new_beat(entries, file=…)`."""
    made: list[Beat] = []

    def make(entries: dict[str, Any], file: str = "schedule", app: Any = None) -> Beat:
        entries = {name: {"task": "tick", **entry} for name, entry in entries.items()}
        made.append(Beat(app or new_app(outbox=False), clock, tmp_path / file, entries))  # no entry but the test's
        return made[-1]

    before = current_app._get_current_object()
    yield make
    before.set_current()
    for beat in made:
        beat.scheduler.close()


def take_messages(client: Any) -> list[dict[str, Any]]:
    """The headers of the sent messages, oldest first."""
    payloads, _ = client.lrange("celery", 0, -1), client.delete("celery")
    return [json.loads(payload)["headers"] for payload in reversed(payloads)]


def tick() -> None: ...


def run_all(beat: Beat, messages: list[dict[str, Any]]) -> int:
    """The number of them that a PeriodicTask does not ignore."""

    task = beat.app.task(tick, base=PeriodicTask, name="tick", shared=False)
    return [run_task(task, headers) for headers in messages].count("SUCCESS")


ENTRIES = {
    "every": {"schedule": every(10)},
    "interval": {"schedule": 10.0},
    "crontab": {"schedule": crontab(minute="*")},
}


# --- Messages that are sent ---


def test_a_message_names_its_entry_and_its_due_time(new_beat: NewBeat, client: Any, clock: Clock) -> None:
    start = clock.wall
    beat = new_beat({"a": {"schedule": every(30), "options": {"headers": {"mine": 1}, "expires": 30}}})
    beat.run(65)
    messages = take_messages(client)
    assert [(message["beat_entry"], message["beat_due"]) for message in messages] == [
        ("a", start + 30),
        ("a", start + 60),
    ]
    assert [message["mine"] for message in messages] == [1, 1], "the entry's own headers are kept"
    assert all(message["expires"] for message in messages)
    assert "beat_due" not in beat.scheduler.schedule["a"].options["headers"], "they are not those of the next message"


@pytest.mark.parametrize("name", ENTRIES)
def test_every_tick_of_an_entry_runs(name: str, new_beat: NewBeat, client: Any) -> None:
    beat = new_beat({name: ENTRIES[name]})
    beat.run(605)
    messages = take_messages(client)
    assert len(messages) == run_all(beat, messages) == (10 if name == "crontab" else 60)


def test_two_beats_send_a_due_time_twice_and_it_runs_once(new_beat: NewBeat, client: Any, clock: Clock) -> None:
    """The second started later; neither checks exactly when an entry is due."""
    first = new_beat(ENTRIES, file="one")
    first.run(3.3)
    second = new_beat(ENTRIES, file="two")
    for _ in range(200):
        first.run(0.7)
        second.run(0.8)
    messages = take_messages(client)
    for name, times in (("every", 30), ("interval", 30), ("crontab", 5)):
        of_entry = [message for message in messages if message["beat_entry"] == name]
        ran = run_all(first, of_entry)
        assert len(of_entry) > 1.8 * ran, "both have sent it"
        assert times - 1 <= ran <= times + 1


# --- Killed ---


@pytest.mark.parametrize("name", ENTRIES)
def test_what_a_killed_beat_had_sent_is_not_run_again(
    name: str, new_beat: NewBeat, client: Any, tmp_path: Path, clock: Clock
) -> None:
    """Its file is older than its last message: the next beat sends it again, under the same due time."""
    new_beat({name: ENTRIES[name]}, file="old").scheduler.close()
    saved = {file: file.read_bytes() for file in tmp_path.glob("old*")}
    beat = new_beat({name: ENTRIES[name]}, file="old")
    clock.wall += 60 - clock.wall % 60 + 0.3  # it is due
    beat.scheduler.tick()
    beat.scheduler.close()
    for file, content in saved.items():
        file.write_bytes(content)
    clock.pass_by(4.4)  # a late start, within the minute
    again = new_beat({name: ENTRIES[name]}, file="old")
    again.scheduler.tick()
    messages = take_messages(client)
    assert len(messages) == 2
    assert run_all(again, messages) == 1


# --- The clock ---


@given(
    moves=st.lists(
        st.tuples(st.floats(0.1, 130), st.floats(-2 * HOUR, 2 * HOUR) | st.just(-HOUR)), min_size=1, max_size=4
    )
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_clock_that_is_set_stops_nothing(
    new_beat: NewBeat, client: Any, clock: Clock, moves: list[tuple[float, float]], tmp_path: Path
) -> None:
    """Due times that come again run again."""
    client.flushall()
    clock.wall = clock.wall // HOUR * HOUR
    beat = new_beat(ENTRIES, file=f"moves-{time.monotonic_ns()}")
    for seconds, moved in moves:
        beat.run(seconds)
        run_all(beat, take_messages(client))
        clock.wall += moved
        beat.run(0.001)
        run_all(beat, take_messages(client))
        beat.run(125)
        messages = take_messages(client)
        for name, times in (("every", 12), ("interval", 12), ("crontab", 2)):
            of_entry = [message for message in messages if message["beat_entry"] == name]
            assert times - 1 <= len(of_entry) <= times + 2
            assert run_all(beat, of_entry) >= times - 1


@pytest.mark.parametrize("name", ENTRIES)
@pytest.mark.parametrize("file", ["kept", "lost"])
def test_a_clock_that_was_set_back_while_beat_was_down_stops_nothing(
    name: str, file: str, new_beat: NewBeat, client: Any, clock: Clock
) -> None:
    beat = new_beat({name: ENTRIES[name]}, file="kept")
    beat.run(1800)
    run_all(beat, take_messages(client))
    beat.scheduler.close()
    clock.wall -= 1500
    beat = new_beat({name: ENTRIES[name]}, file=file)
    beat.run(300)
    messages = take_messages(client)
    expected = 5 if name == "crontab" else 30
    assert expected - 1 <= len(messages) <= expected + 1
    assert run_all(beat, messages) >= len(messages) - 1, "that of this second had run"


def test_a_clock_that_is_set_back_is_logged(new_beat: NewBeat, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    beat = new_beat(ENTRIES)
    beat.run(30)
    clock.wall -= HOUR
    with caplog.at_level(logging.WARNING):
        beat.run(30)
    assert [record.getMessage() for record in caplog.records] == [
        "the clock was set back by 3600 s: the schedule counts from now"
    ]


# --- Late, or not sent ---


@pytest.fixture
def announced() -> Iterator[dict[str, list[float]]]:
    """Beat's signals."""
    said: dict[str, list[float]] = {"lateness": [], "overdue": []}

    def sent(lateness: float, **_: Any) -> None:
        said["lateness"].append(lateness)

    def ticked(overdue: float, **_: Any) -> None:
        said["overdue"].append(overdue)

    beat_sent.connect(sent)
    beat_ticked.connect(ticked)
    yield said
    beat_sent.disconnect(sent)
    beat_ticked.disconnect(ticked)


@pytest.mark.parametrize("entry", [every(5), 5.0], ids=["every", "interval"])
def test_lateness_is_that_of_the_longest_missed_due_time(
    entry: Any, new_beat: NewBeat, client: Any, clock: Clock, announced: dict[str, list[float]]
) -> None:
    beat = new_beat({"a": {"schedule": entry}})
    beat.run(20.5)
    assert all(0 <= lateness < 0.1 for lateness in announced["lateness"])
    clock.pass_by(200)
    beat.scheduler.tick()
    assert announced["lateness"][-1] == pytest.approx(200 - 4.5, abs=1)
    assert announced["overdue"][-2] < 1
    assert len(take_messages(client)) == 5, "all missed due times make one message"


def test_overdue_is_what_is_due_and_not_sent(
    new_beat: NewBeat, clock: Clock, announced: dict[str, list[float]]
) -> None:
    beat = new_beat({"a": {"schedule": every(5)}, "b": {"schedule": every(5)}})
    beat.run(20.5)
    assert max(announced["overdue"]) < 0.1
    clock.pass_by(100)
    assert beat.scheduler.overdue() == pytest.approx(100 - 4.5, abs=1)
    beat.scheduler.tick()
    assert announced["overdue"][-1] == pytest.approx(100 - 4.5, abs=1), "one of the two is not sent yet"
    beat.scheduler.tick()
    assert announced["overdue"][-1] == 0


def test_an_unreachable_broker_makes_entries_late_and_loses_none(
    new_app: NewApp,
    new_beat: NewBeat,
    other_redis: RedisServer,
    clock: Clock,
    announced: dict[str, list[float]],
    tmp_path: Path,
) -> None:
    heartbeat = tmp_path / "heartbeat"
    app = new_app(
        {"broker_url": other_redis.url, "task_publish_retry": False},
        outbox=False,
        heartbeat_file=heartbeat,
        beat_overdue_after=15,
    )
    with other_redis.stopped():
        beat = new_beat({"a": {"schedule": every(20)}, "b": {"schedule": crontab(minute="*")}}, app=app)
        beat.run(25)
        assert announced["lateness"] == []
        assert 4 < announced["overdue"][-1] < 6, "it was due 5 s ago"
        assert heartbeat.exists(), "it is healthy until beat_overdue_after"
        beat.run(12)
        heartbeat.unlink()
        beat.run(30)
        assert not heartbeat.exists()
        assert 45 < announced["overdue"][-1] < 48
    beat.run(3)
    assert heartbeat.exists()
    assert announced["overdue"][-1] == 0
    messages = take_messages(other_redis.client)
    due = sorted((message["beat_entry"], message["beat_due"]) for message in messages)
    start = clock.wall // 60 * 60
    assert due == [("a", start), ("b", start)]
    assert sorted(announced["lateness"]) == pytest.approx([8, 48], abs=2)


def test_a_broker_that_is_unreachable_for_a_while(
    new_app: NewApp, new_beat: NewBeat, other_redis: RedisServer, announced: dict[str, list[float]]
) -> None:
    app = new_app({"broker_url": other_redis.url, "task_publish_retry": False}, outbox=False)
    beat = new_beat({"a": {"schedule": every(5)}}, app=app)
    beat.run(11)
    assert len(announced["lateness"]) == 2
    with other_redis.stopped():
        beat.run(20)
        assert len(announced["lateness"]) == 2
        assert announced["overdue"][-1] > 14
    beat.run(5)
    assert len(announced["lateness"]) == 4
    assert len(take_messages(other_redis.client)) == 2


def test_an_entry_that_cannot_be_sent_does_not_block_the_others(
    new_beat: NewBeat, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    beat = new_beat({"broken": {"schedule": every(5), "args": ({1, 2},)}, "a": {"schedule": every(5)}})
    beat.run(26)
    assert [message["beat_entry"] for message in take_messages(client)] == ["a"] * 5
    assert "entry broken not sent, trying again in 1 s: Couldn't apply scheduled task broken" in caplog.text
    assert beat.scheduler.overdue() > 20


class OnlyIsDue(BaseSchedule):
    """A user's schedule that has only the methods that Celery requires."""

    def __reduce__(self) -> tuple[Any, ...]:  # beat keeps its schedule in a file
        return type(self), ()

    def is_due(self, last_run_at: datetime) -> Any:
        waited = self.now() - last_run_at
        return (waited >= timedelta(seconds=5), 1.0)


def test_a_schedule_that_names_no_due_time_is_sent_for_now(
    new_beat: NewBeat, client: Any, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    beat = new_beat({"a": {"schedule": OnlyIsDue()}})
    beat.run(22)
    messages = take_messages(client)
    assert len(messages) >= 3
    assert run_all(beat, messages) == len(messages)
    assert "entry a: its schedule gives no due time" in caplog.text


def test_a_file_with_a_time_without_an_offset(new_beat: NewBeat, client: Any, clock: Clock) -> None:
    beat = new_beat({"a": {"schedule": every(5)}})
    entry = beat.scheduler.schedule["a"]
    entry.last_run_at = clock.now().replace(tzinfo=None)
    beat.scheduler.close()
    again = new_beat({"a": {"schedule": every(5)}})
    again.run(11)
    assert len(take_messages(client)) == 2


def test_an_entry_that_is_removed_is_overdue_no_longer(new_beat: NewBeat, clock: Clock) -> None:
    beat = new_beat({"a": {"schedule": every(5)}, "b": {"schedule": every(HOUR)}})
    beat.run(1)
    clock.pass_by(60)
    assert beat.scheduler.overdue() > 50
    del beat.scheduler.schedule["a"]
    assert beat.scheduler.overdue() == 0


def test_beat_runs_the_reconciler(new_app: NewApp, new_beat: NewBeat, client: Any, clock: Clock) -> None:
    beat = new_beat({}, app=new_app(reconcile_interval=7, reconcile_queue="quick", reconcile_priority=0))
    beat.run(15)
    payloads = [json.loads(payload) for payload in client.lrange("quick", 0, -1)]
    assert [payload["headers"]["task"] for payload in payloads] == ["celery_durable.reconcile"] * 2
    assert {payload["properties"]["priority"] for payload in payloads} == {0}
    assert run_task(beat.app.tasks["celery_durable.reconcile"], payloads[0]["headers"]) == "SUCCESS"


def test_without_the_outbox_beat_runs_no_reconciler(new_beat: NewBeat, client: Any) -> None:
    beat = new_beat({})
    beat.run(30)
    assert take_messages(client) == []
    assert "celery_durable.reconcile" not in beat.scheduler.schedule


def test_an_entry_of_the_apps_own_replaces_the_librarys(new_app: NewApp, new_beat: NewBeat, client: Any) -> None:
    app = new_app()
    beat = new_beat({"celery_durable.reconcile": {"task": "celery_durable.reconcile", "schedule": every(20)}}, app=app)
    beat.run(45)
    assert len(take_messages(client)) == 2
