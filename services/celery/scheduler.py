"""Beat's scheduler: ticks that two beats compute alike, and what it reports of itself."""

import copy
import time
from datetime import datetime, timedelta
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

from billiard.process import current_process
from celery import beat, signals
from celery.schedules import crontab, schedule
from prometheus_client import Gauge

from delivery.checks import refuse_dangerous_settings
from metrics.exposition import registry, serve
from settings import settings


@cache
def last_tick() -> Gauge:
    """Made at the first tick: every process of the app imports this module, and only beat may report a tick."""
    return Gauge(
        "celery_beat_last_tick_timestamp_seconds",
        "When beat last looked at its schedule.",
        multiprocess_mode="mostrecent",
    )


LATENESS = Gauge(
    "celery_beat_lateness_seconds",
    "How long after its due time an entry was last sent.",
    ["entry"],
    multiprocess_mode="mostrecent",
)


class every(schedule):  # noqa: N801 - reads like Celery's crontab and solar
    """Each `seconds`, on the clock: due at the multiples of it since the epoch, whenever beat was started.

    So two beats, or one that was restarted, compute the same due times, and a due time names its run.
    Celery's own interval counts from the last run and drifts with it.
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
        self.zone = zone
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


def due_time(entry_schedule: Any, now: float) -> float:
    """The due time (epoch seconds) that a message sent at `now` belongs to: of a crontab or solar entry, its minute."""
    period = entry_schedule.run_every.total_seconds() if isinstance(entry_schedule, every) else 60.0
    return now // period * period


class Scheduler(beat.PersistentScheduler):
    """Celery's persistent scheduler; each message carries its entry's name and due time, so that tasks can tell a
    second beat's tick from their own."""

    def tick(self, *args: Any, **kwargs: Any) -> float:
        delay: float = super().tick(*args, **kwargs)
        last_tick().set_to_current_time()
        (settings.run_dir / "heartbeat").touch()
        return delay

    def apply_async(self, entry: Any, producer: Any = None, advance: bool = True, **kwargs: Any) -> Any:
        now = time.time()
        due = due_time(entry.schedule, now)
        LATENESS.labels(entry.name).set(now - due)
        stamped = copy.copy(entry)
        headers = {**entry.options.get("headers", {}), "beat_entry": entry.name, "beat_due": due}
        stamped.options = {**entry.options, "headers": headers}
        return super().apply_async(stamped, producer=producer, advance=advance, **kwargs)


@signals.beat_init.connect
def check_settings_and_serve_metrics(sender: Any, **_: Any) -> None:
    """Of a beat with a process of its own; what `worker --beat` starts is checked and served by its worker."""
    if current_process().name == "MainProcess":
        refuse_dangerous_settings(sender.app.conf)
        serve(settings.metrics_port, registry())
