"""Beat's clock: due times are the same for every beat, and none is missed or sent twice."""

from datetime import UTC, datetime, timedelta

import pytest
from celery.schedules import crontab
from hypothesis import given
from hypothesis import strategies as st

from beat_schedule import ENTRIES
from scheduler import due_time, every, zoned

EPOCH = datetime(2026, 1, 1, tzinfo=UTC).timestamp()


def clock(entry: every, now: float) -> None:
    entry.nowfun = lambda: datetime.fromtimestamp(now, UTC)


@given(period=st.integers(1, 3600), start=st.floats(0, 10_000), steps=st.lists(st.floats(0.01, 100), max_size=50))
def test_each_due_time_is_seen_once(period: int, start: float, steps: list[float]) -> None:
    """Whenever beat looks, an entry is due exactly when a multiple of its period lies between its last run and now."""
    entry, last_run, now = every(period), EPOCH + start, EPOCH + start
    for step in steps:
        now = round(now + step, 3)
        clock(entry, now)
        due, _ = entry.is_due(datetime.fromtimestamp(last_run, UTC))
        assert due == (now // period > last_run // period)
        if due:
            assert due_time(entry, now) > last_run
            last_run = now


def test_two_beats_that_started_apart_compute_the_same_due_time() -> None:
    entry = every(30)
    assert due_time(entry, EPOCH + 30.01) == due_time(entry, EPOCH + 31.7) == EPOCH + 30


@pytest.mark.parametrize("after", [0.0, 0.4, 29.9])
def test_sleeps_until_the_next_due_time(after: float) -> None:
    entry = every(30)
    clock(entry, EPOCH + after)
    assert entry.is_due(datetime.fromtimestamp(EPOCH, UTC) - timedelta(seconds=1)) == (True, pytest.approx(30 - after))
    due, delay = entry.is_due(datetime.fromtimestamp(EPOCH, UTC))
    assert (due, delay) == (False, pytest.approx(30 - after))


def test_a_crontab_is_named_by_its_minute() -> None:
    assert due_time(crontab(minute="*/5"), EPOCH + 301.5) == EPOCH + 300


def test_a_zoned_crontab_goes_by_its_own_clock() -> None:
    """9:00 in Tokyo is 0:00 UTC; Celery's crontab takes the app's time zone, whatever the entry's clock says."""
    entry = zoned("Asia/Tokyo", hour=9, minute=0)
    kind, arguments, options = entry.__reduce__()
    assert kind(*arguments, **options) == entry, "it survives beat's schedule file"
    assert entry != zoned("Asia/Seoul", hour=9, minute=0)
    last_run = datetime.fromtimestamp(EPOCH - 60, UTC)
    for now, due in ((EPOCH - 30, False), (EPOCH + 1, True)):
        entry.nowfun = lambda now=now: datetime.fromtimestamp(now, entry.tz)
        assert entry.is_due(last_run).is_due is due


@pytest.mark.parametrize("name", ENTRIES)
def test_entries_expire_before_they_are_due_again(name: str) -> None:
    entry = ENTRIES[name]
    assert entry["options"]["expires"] <= entry["schedule"].run_every.total_seconds()
