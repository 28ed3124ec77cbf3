"""Beat's scheduler: sends every due entry, puts the due time in each message, and handles changes of the clock."""

import time
from datetime import datetime
from heapq import heapify
from typing import Any

from celery import beat
from redis import RedisError

from celery_durable.checks import refuse_dangerous_settings
from celery_durable.logs import get_logger
from celery_durable.periodic import DUE, ENTRY, RECONCILE
from celery_durable.schedules import Due, due, every
from celery_durable.signals import beat_sent, beat_ticked
from celery_durable.times import aware

logger = get_logger(__name__)

SET_BACK = 1.0  # s; a smaller step backwards of the clock is ignored
TRY_AGAIN = 1.0  # s after a send that failed


class Scheduler(beat.PersistentScheduler):
    """Celery's persistent scheduler, with these differences:

    - A message has its entry's name and due time in headers (`beat_entry`, `beat_due`), so that the duplicate message
      of a second beat can be recognised.
    - An entry that could not be sent stays due and is tried again; it is not skipped until its next due time.
    - When the clock is set back, entries are still sent; they count from the new time.
    - It measures how long an entry has been due and unsent with the monotonic clock, and touches its heartbeat file
      only while that is less than Config.beat_overdue_after.
    """

    _heap: Any  # Celery's: the next time of each entry; None: to be rebuilt

    def __init__(self, app: Any, *args: Any, **kwargs: Any) -> None:
        refuse_dangerous_settings(app)
        self._clock = time.time() - time.monotonic()
        self._deadlines: dict[str, tuple[datetime, float]] = {}  # entry: its last run, and when it is due (monotonic)
        self._again: dict[str, float] = {}  # entry that could not be sent: when it is tried again (monotonic)
        super().__init__(app, *args, **kwargs)

    @property
    def durable(self) -> Any:
        """The `Durable` of beat's app."""
        return self.app.durable

    def setup_schedule(self) -> None:
        super().setup_schedule()
        self._start_from_now()  # the schedule file may have been written while the clock was wrong

    def install_default_entries(self, data: Any) -> None:
        """Celery's, and the reconciler's entry."""
        super().install_default_entries(data)
        config = self.durable.config
        if config.outbox and RECONCILE not in data:
            options: dict[str, Any] = {"expires": config.reconcile_interval, "priority": config.reconcile_priority}
            if config.reconcile_queue:
                options["queue"] = config.reconcile_queue
            entry = {"task": RECONCILE, "schedule": every(config.reconcile_interval), "options": options}
            self.update_from_dict({RECONCILE: entry})

    def tick(self, *args: Any, **kwargs: Any) -> float:
        clock = time.time() - time.monotonic()
        if clock < self._clock - SET_BACK:
            logger.warning("the clock was set back by %.0f s: the schedule counts from now", self._clock - clock)
            self._start_from_now()
        self._clock = clock
        delay: float = super().tick(*args, **kwargs)
        self._report()
        return delay

    def populate_heap(self, *args: Any, **kwargs: Any) -> None:
        """Delay an entry that could not be sent: Celery would retry it in a loop, before all others."""
        super().populate_heap(*args, **kwargs)
        now = time.monotonic()
        for index, event in enumerate(self._heap):
            wait = self._again.get(event.entry.name, now) - now
            self._heap[index] = event._replace(time=event.time + max(0.0, wait))
        heapify(self._heap)

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        """Send an entry that is due. `tick` has marked it as sent already; if sending fails it is made due again."""
        logger.info("sending due task %s (%s)", entry.name, entry.task)
        times = self._due(entry)
        headers = {**(entry.options.get("headers") or {}), ENTRY: entry.name, DUE: times.newest}
        stamped = type(entry)(**dict(entry, options={**entry.options, "headers": headers}))
        try:
            self.apply_async(stamped, producer=producer, advance=False)
        except beat.SchedulingError as error:
            logger.error("entry %s not sent, trying again in %g s: %s", entry.name, TRY_AGAIN, error)
            self.schedule[entry.name] = entry
            self._again[entry.name], self._heap = time.monotonic() + TRY_AGAIN, None
        else:
            self._again.pop(entry.name, None)
            beat_sent.send(sender=self.app, entry=entry.name, lateness=max(0.0, time.time() - times.first))

    def _ensure_connected(self) -> Any:
        """Do not wait for an unavailable broker, as Celery does: the tick would not end, and beat would seem dead."""
        return self.connection

    def _due(self, entry: Any) -> Due:
        now = self.schedule[entry.name].last_run_at  # of the message that is being sent
        try:
            return due(entry.schedule, entry.last_run_at, now)
        except Exception:  # raised by a user's own schedule
            logger.exception("entry %s: its schedule gives no due time; the current time is used", entry.name)
            return Due(aware(now).timestamp(), aware(now).timestamp())

    def overdue(self) -> float:
        """Seconds that the longest waiting entry has been due and unsent, by the monotonic clock."""
        now, names = time.monotonic(), set()
        for entry in list(self.schedule.values()):
            names.add(entry.name)
            if self._deadlines.get(entry.name, (None,))[0] != entry.last_run_at:
                self._deadlines[entry.name] = entry.last_run_at, now + self._remaining(entry)
        for gone in self._deadlines.keys() - names:
            del self._deadlines[gone]
        return max([0.0, *(now - deadline for _, deadline in self._deadlines.values())])

    def _remaining(self, entry: Any) -> float:
        try:
            is_due, remaining = entry.is_due()
            return 0.0 if is_due else float(remaining)
        except Exception:  # Celery will log it when the entry is next checked
            return float(self.max_interval)

    def _report(self) -> None:
        overdue, config = self.overdue(), self.durable.config
        beat_ticked.send(sender=self.app, overdue=overdue)
        if config.heartbeat_file and overdue < config.beat_overdue_after:
            config.heartbeat_file.touch()

    def _start_from_now(self) -> None:
        """Entries whose last run is now in the future count from now, and their repeated due times run again."""
        now = time.time()
        for entry in self.schedule.values():
            if aware(entry.last_run_at).timestamp() > now + SET_BACK:
                entry.last_run_at = entry.default_now()
        self._deadlines.clear()
        self._heap = None
        try:
            self.durable.ticks.forget_after(now + SET_BACK, self.schedule)
        except RedisError as error:
            logger.warning("repeated due times are not run again: %s", error)
