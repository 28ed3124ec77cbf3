"""The due times of beat's schedules: the same for every beat, however late it checks, and none twice."""

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pytest
from celery import Celery
from celery.schedules import BaseSchedule, crontab, schedule
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from celery_durable import every, zoned
from celery_durable.schedules import Due, due

START = datetime(2026, 10, 24, 12, tzinfo=UTC).timestamp()  # summer time ends in Europe that night
DAY = 86_400


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def app_in(zone: str) -> Celery:
    app = Celery("schedules", set_as_current=False)
    app.conf.timezone = zone
    return app


APPS = {zone: app_in(zone) for zone in ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata")}


class Tide(BaseSchedule):
    """A user's schedule: fixed to the clock, not at whole seconds, and computed again each time."""

    PERIOD = 44_712.73

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        following = (last_run_at.timestamp() // self.PERIOD + 1) * self.PERIOD
        return timedelta(seconds=following - self.now().timestamp())

    def is_due(self, last_run_at: datetime) -> Any:
        remaining = self.remaining_estimate(last_run_at).total_seconds()
        return (remaining <= 0, max(0.0, remaining))


class Twice(schedule):
    """A user's interval that is due twice as often as its `run_every`."""

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        half = self.run_every.total_seconds() / 2
        return timedelta(seconds=(last_run_at.timestamp() // half + 1) * half - self.now().timestamp())

    def is_due(self, last_run_at: datetime) -> Any:
        remaining = self.remaining_estimate(last_run_at).total_seconds()
        return (remaining <= 0, max(0.0, remaining))


def crontabs(make: Callable[..., Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.builds(make, minute=st.sampled_from(["*", "*/5", "7,11", "0"])),
        st.builds(make, minute=st.sampled_from(["0", "30"]), hour=st.sampled_from(["*", "*/6", "2", "23"])),
        st.builds(make, minute=st.just("0"), hour=st.just("3"), day_of_week=st.sampled_from(["0", "1-5"])),
        st.builds(make, minute=st.just("0"), hour=st.just("0"), day_of_month=st.sampled_from(["1", "25", "*/3"])),
    )


ON_THE_CLOCK = st.one_of(
    st.builds(every, st.sampled_from([0.5, 1, 5, 30, 90, 3600, DAY])),
    crontabs(crontab),
    st.sampled_from(["Europe/Berlin", "America/New_York", "Asia/Kolkata"]).flatmap(
        lambda zone: crontabs(lambda **cron: zoned(zone, **cron))
    ),
    st.builds(Tide),
    st.builds(Twice, st.sampled_from([10, 300])),
)
ANY = st.one_of(
    ON_THE_CLOCK,
    st.builds(schedule, st.sampled_from([1.0, 7.5, 10.0, 60.0, 90.0, 3600.0])),
    st.builds(lambda seconds: schedule(seconds, relative=True), st.sampled_from([10.0, 90.0, 5400.0, 2.0 * DAY])),
)
OFFSETS = st.floats(0, 2 * DAY).map(lambda offset: round(offset, 3))
STEPS = st.lists(
    st.one_of(st.floats(0.01, 3), st.floats(0.01, 120), st.floats(60, 2 * DAY)).map(lambda step: round(step, 3)),
    min_size=1,
    max_size=30,
)


def repeated(seconds: float) -> bool:
    """Whether a clock shows this hour for the second time: Celery's crontab takes it for the first then."""
    return any(at(seconds).astimezone(ZoneInfo(zone)).fold for zone in APPS)


def look(entry: Any, last_run: float, now: float) -> Due | None:
    """The due time that a beat sends now; None if nothing is due."""
    entry.nowfun = lambda: at(now).astimezone(entry.app.timezone)
    return due(entry, at(last_run), at(now)) if entry.is_due(at(last_run))[0] else None


def sent(entry: Any, start: float, steps: list[float]) -> list[tuple[float, float, Due]]:
    """Last run, time and due times of each message of a beat that starts then and checks after each step."""
    messages, last_run, now = [], start, start
    assume(not repeated(start))
    for step in steps:
        now = round(now + step, 3)
        assume(not repeated(now))
        if found := look(entry, last_run, now):
            messages.append((last_run, now, found))
            last_run = now
    return messages


@given(entry=ANY, zone=st.sampled_from(sorted(APPS)), offset=OFFSETS, steps=STEPS)
@settings(deadline=None)
def test_each_message_of_a_beat_is_for_another_due_time(
    entry: Any, zone: str, offset: float, steps: list[float]
) -> None:
    entry.app = APPS[zone]
    earlier = -math.inf
    for last_run, now, times in sent(entry, START + offset, steps):
        assert times.newest > earlier, "PeriodicTask runs each"
        assert last_run - 0.5 <= times.newest <= now + 0.5
        assert last_run <= times.first <= now, "since when it has been due"
        earlier = times.newest


@given(
    entry=ON_THE_CLOCK,
    zone=st.sampled_from(sorted(APPS)),
    offset=OFFSETS,
    steps=STEPS,
    head_start=st.floats(0.001, 3 * DAY),
    later=st.floats(0.001, 2 * DAY),
)
@settings(deadline=None)
def test_a_late_beat_and_a_second_one_send_the_same_due_time(
    entry: Any, zone: str, offset: float, steps: list[float], head_start: float, later: float
) -> None:
    entry.app = APPS[zone]
    for last_run, now, times in sent(entry, START + offset, steps):
        assume(not repeated(last_run - head_start) and not repeated(now + later))
        other = look(entry, last_run - head_start, now)
        assert other is not None
        assert other.newest == times.newest, "whenever it ran last"
        late = look(entry, last_run, now + later)
        assert late is not None
        assert late.newest == times.newest or late.newest > now - 0.5, "however late it checks"
        assert late.first == pytest.approx(times.first, abs=0.001), "its lateness is the whole delay"


@given(minute=st.sampled_from([0, 7, 30, 59]), hour=st.sampled_from([None, 0, 3, 23]), offset=OFFSETS)
@settings(deadline=None)
def test_the_newest_due_time_of_a_crontab_is_the_last_minute_that_it_names(
    minute: int, hour: int | None, offset: float
) -> None:
    entry = crontab(minute=minute, hour="*" if hour is None else hour)
    entry.app = APPS["Asia/Kolkata"]
    now = START + offset
    found = look(entry, now - 2 * DAY, now)
    at_minute = at(now).astimezone(ZoneInfo("Asia/Kolkata")).replace(second=0, microsecond=0)
    while not (at_minute.minute == minute and hour in (None, at_minute.hour)):
        at_minute -= timedelta(minutes=1)
    assert found is not None
    assert found.newest == at_minute.timestamp()


@pytest.mark.parametrize("after", [0, 0.001, 0.4, 59.999])
def test_the_whole_of_a_minute_belongs_to_it(after: float) -> None:
    entry = crontab(minute="*")
    entry.app = APPS["UTC"]
    times = look(entry, START - 1, START + after)
    assert times == Due(START, START)


def test_lateness_is_counted_from_the_first_due_time_that_was_missed() -> None:
    for entry in (every(5), schedule(5), crontab(minute="*")):
        entry.app = APPS["UTC"]
        times = look(entry, START, START + 200)
        assert times is not None
        assert START + 200 - times.first in (195, 140)


def test_hours_that_the_clock_repeats_or_skips_move_no_due_time() -> None:
    """Three o'clock in Berlin, before and after the night in which summer time ends, seen from after it."""
    entry = zoned("Europe/Berlin", minute=0, hour=3)
    entry.app = APPS["Europe/Berlin"]
    before = datetime(2026, 10, 24, 3, tzinfo=ZoneInfo("Europe/Berlin")).timestamp()
    after = datetime(2026, 10, 25, 3, tzinfo=ZoneInfo("Europe/Berlin")).timestamp()
    assert after - before == 25 * 3600
    assert look(entry, before - 3600, after + 7200) == Due(before, after)
    assert look(entry, before - 3600, after - 1) == Due(before, before)


def test_a_time_of_the_last_run_without_an_offset_is_utc() -> None:
    entry = every(5)
    assert due(entry, at(START).replace(tzinfo=None), at(START + 7)) == due(entry, at(START), at(START + 7))


def test_solar_events_have_the_same_due_time() -> None:
    pytest.importorskip("ephem")
    from celery.schedules import solar

    entry = solar("sunset", 52.5, 13.4)
    entry.app = APPS["UTC"]
    times = look(entry, START - DAY, START + 10 * 3600)
    assert times is not None
    for last_run, now in ((times.newest - 1, 1), (times.newest - 3600, 5.3), (times.newest - 7 * DAY, DAY / 2)):
        other = look(entry, last_run, times.newest + now)
        assert other is not None
        assert other.newest == times.newest
    tomorrow = look(entry, START - DAY, START + 10 * 3600 + DAY)
    assert tomorrow is not None
    assert DAY - 300 < tomorrow.newest - times.newest < DAY


# --- every ---


@given(period=st.integers(1, 3600), start=st.floats(0, 10_000), steps=st.lists(st.floats(0.01, 100), max_size=50))
def test_each_due_time_is_seen_once(period: int, start: float, steps: list[float]) -> None:
    """An entry is due exactly if a multiple of its period lies between its last run and the check."""
    entry, last_run, now = every(period), START + start, START + start
    for step in steps:
        now = round(now + step, 3)
        entry.nowfun = lambda now=now: at(now)
        is_due, _ = entry.is_due(at(last_run))
        assert is_due == (now // period > last_run // period)
        if is_due:
            last_run = now


@pytest.mark.parametrize("after", [0.0, 0.4, 29.9])
def test_sleeps_until_the_next_due_time(after: float) -> None:
    entry = every(30)
    entry.nowfun = lambda: at(START + after)
    assert entry.is_due(at(START - 1)) == (True, pytest.approx(30 - after))
    assert entry.is_due(at(START)) == (False, pytest.approx(30 - after))


def test_a_timedelta_is_accepted() -> None:
    entry = every(timedelta(minutes=1))
    assert look(entry, START - 1, START + 1) == Due(START, START)


# --- zoned ---


def test_a_zoned_crontab_uses_its_own_time_zone() -> None:
    """9:00 in Tokyo is 0:00 UTC; Celery's crontab always uses the app's time zone."""
    entry = zoned("Asia/Tokyo", hour=9, minute=0)
    midnight = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    for app in APPS.values():
        entry.app = app
        assert look(entry, midnight - 60, midnight - 30) is None
        assert look(entry, midnight - 60, midnight + 1) == Due(midnight, midnight)


def test_a_zoned_crontab_survives_beats_schedule_file() -> None:
    entry = zoned("Asia/Tokyo", hour=9, minute=0)
    kind, arguments, options = entry.__reduce__()
    assert kind(*arguments, **options) == entry
    assert entry != zoned("Asia/Seoul", hour=9, minute=0)
    assert entry != crontab(hour=9, minute=0)


def test_a_zone_that_does_not_exist_is_refused_where_it_is_written() -> None:
    with pytest.raises(ZoneInfoNotFoundError, match="Asia/Atlantis"):
        zoned("Asia/Atlantis", minute=0)
