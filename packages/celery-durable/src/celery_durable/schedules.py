"""Beat's schedules, with due times that are the same in every beat process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from celery.schedules import crontab, schedule

from celery_durable.times import aware

# Where the search for a schedule's latest due time starts, in seconds before now; short ones first, for frequent
# schedules.
STARTS = (61, 3_660, 86_460, 32 * 86_400, 367 * 86_400)
STEP = timedelta(seconds=1)  # two computations of a solar event differ by microseconds


class every(schedule):  # noqa: N801 - reads like Celery's crontab and solar
    """Every `seconds`, aligned to the clock: due at multiples of it since the epoch, whenever beat was started.

    So two beat processes, or a restarted one, compute the same due times. Celery's own interval counts from the last
    run and drifts.
    """

    def __init__(self, seconds: float | timedelta, relative: bool = False, nowfun: Any = None, app: Any = None) -> None:
        super().__init__(seconds, relative=relative, nowfun=nowfun, app=app)

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        period = self.run_every.total_seconds()
        following = (last_run_at.timestamp() // period + 1) * period
        return timedelta(seconds=following - self.now().timestamp())

    def is_due(self, last_run_at: datetime) -> Any:
        remaining = self.remaining_estimate(last_run_at).total_seconds()
        if remaining > 0:
            return False, remaining
        return True, max(0.0, self.remaining_estimate(self.now()).total_seconds())


class zoned(crontab):  # noqa: N801
    """Celery's crontab in its own time zone ("Asia/Tokyo"); Celery's uses the app's `timezone`."""

    def __init__(self, zone: str, *cron: Any, **options: Any) -> None:
        self.zone = ZoneInfo(zone).key  # raises if there is no such zone
        super().__init__(*cron, **options)

    @property
    def tz(self) -> ZoneInfo:
        return ZoneInfo(self.zone)

    def __reduce__(self) -> tuple[Any, ...]:  # beat pickles its schedule into a file
        kind, cron, options = super().__reduce__()
        return kind, (self.zone, *cron), options

    def __eq__(self, other: object) -> bool:
        return isinstance(other, zoned) and self.zone == other.zone and bool(super().__eq__(other))

    __hash__ = None  # type: ignore[assignment] # as crontab's


class Due(NamedTuple):
    """Due times (epoch s) of an entry that is due."""

    first: float  # the first due time after its last run: it has been due since then
    newest: float  # the due time of a message sent now: one message for all due times that were missed


def due(entry_schedule: Any, last_run_at: datetime, now: datetime) -> Due:
    """The due times of a schedule, from its last run to now.

    `newest` depends only on the schedule and on `now`, so that a late, a restarted and a second beat compute the same
    due time. Celery's interval has no fixed due times: the multiple of it at or before `now` is used.
    """
    last_run_at, now = (aware(moment).astimezone(UTC) for moment in (last_run_at, now))  # so that differences are real
    if _is_interval(entry_schedule):
        period = entry_schedule.run_every.total_seconds()
        newest = now.timestamp() // period * period
        if isinstance(entry_schedule, every):
            return Due((last_run_at.timestamp() // period + 1) * period, newest)
        return Due(last_run_at.timestamp() + period, newest)
    with _at(entry_schedule, now) as following:
        first = following(last_run_at)
        newest_moment = _newest(following, last_run_at, now) or first
    return Due(first.timestamp(), float(round(newest_moment.timestamp())))


def _is_interval(entry_schedule: Any) -> bool:
    """Whether it is a plain interval; not a relative one, nor a subclass with due times of its own."""
    kind = type(entry_schedule)
    plain = getattr(kind, "remaining_estimate", None) in (schedule.remaining_estimate, every.remaining_estimate)
    return plain and not entry_schedule.relative


@contextmanager
def _at(entry_schedule: Any, now: datetime) -> Iterator[Callable[[datetime], datetime]]:
    """Yields a function that returns the first due time after a moment, computed from the time remaining at `now`."""
    own, entry_schedule.nowfun = entry_schedule.nowfun, lambda: now
    try:
        yield lambda moment: now + entry_schedule.remaining_estimate(moment)
    finally:
        entry_schedule.nowfun = own


def _newest(following: Callable[[datetime], datetime], last_run_at: datetime, now: datetime) -> datetime | None:
    for seconds in STARTS:
        start = max(now - timedelta(seconds=seconds), last_run_at)
        found = following(start)
        if found <= now:
            while found < (later := following(found + STEP)) <= now:
                found = later
            return found
        if start == last_run_at:
            break
    return None
