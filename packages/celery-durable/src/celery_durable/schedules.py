"""Beat's schedules, and the due times that they name alike for every beat."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from celery.schedules import crontab, schedule

from celery_durable.times import aware

# Where the search for a schedule's newest due time starts, in seconds before now: a frequent one is found at once.
STARTS = (61, 3_660, 86_460, 32 * 86_400, 367 * 86_400)
STEP = timedelta(seconds=1)  # a solar event is not computed twice to the same microsecond


class every(schedule):  # noqa: N801 - reads like Celery's crontab and solar
    """Each `seconds`, on the clock: due at the multiples of it since the epoch, whenever beat was started.

    So two beats, or one that was restarted, compute the same due times. Celery's own interval counts from the last run
    and drifts with it.
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
    """Celery's crontab on the clock of a time zone ("Asia/Tokyo"); Celery's own goes by the app's `timezone`."""

    def __init__(self, zone: str, *cron: Any, **options: Any) -> None:
        self.zone = ZoneInfo(zone).key  # raises where there is none
        super().__init__(*cron, **options)

    @property
    def tz(self) -> ZoneInfo:
        return ZoneInfo(self.zone)

    def __reduce__(self) -> tuple[Any, ...]:  # beat keeps its schedule in a file
        kind, cron, options = super().__reduce__()
        return kind, (self.zone, *cron), options

    def __eq__(self, other: object) -> bool:
        return isinstance(other, zoned) and self.zone == other.zone and bool(super().__eq__(other))

    __hash__ = None  # type: ignore[assignment] # as crontab's


class Due(NamedTuple):
    """Due times (epoch s) of an entry that is due."""

    first: float  # since when it has been due: the first due time after its last run
    newest: float  # the due time that a message sent now is for: several that were missed are one message


def due(entry_schedule: Any, last_run_at: datetime, now: datetime) -> Due:
    """The due times of a schedule, from its last run to now.

    `newest` comes from the schedule and from `now` alone, so that a late beat, a restarted one and a second one name a
    due time alike. An interval of Celery's has no due times on the clock: its message is for the multiple of it at or
    before `now`.
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
    """Of Celery's kind. A relative one is due on the clock, and a user's own subclass whenever it says."""
    kind = type(entry_schedule)
    plain = getattr(kind, "remaining_estimate", None) in (schedule.remaining_estimate, every.remaining_estimate)
    return plain and not entry_schedule.relative


@contextmanager
def _at(entry_schedule: Any, now: datetime) -> Iterator[Callable[[datetime], datetime]]:
    """Gives what gives the first due time after a moment. A schedule tells it by what remains from its `now`."""
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
