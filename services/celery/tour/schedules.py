"""Schedules of the beats that lessons start: functions of the queue to send to (tour/app.py)."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from celery.schedules import crontab, schedule, solar

from celery_app import durable
from celery_durable import every, zoned
from celery_durable.scheduler import Scheduler

Schedule = dict[str, dict[str, Any]]

LONG_AGO = datetime.now(UTC) - timedelta(days=3)


def kinds(queue: str) -> Schedule:
    """Each kind of schedule. `last_run_at`: as if beat had been off since then; else a new entry counts from now."""
    to = {"options": {"queue": queue}, "last_run_at": LONG_AGO}
    return {
        "every hour": {"task": "tasks.basic.add", "args": (1, 1), "schedule": schedule(3600), **to},
        "at three": {"task": "tasks.basic.add", "args": (2, 2), "schedule": crontab(hour=3, minute=0), **to},
        "at nine in Tokyo": {
            "task": "tasks.basic.add",
            "args": (3, 3),
            "schedule": zoned("Asia/Tokyo", hour=9, minute=0),
            **to,
        },
        "at sunrise in Lisbon": {
            "task": "tasks.basic.add",
            "args": (4, 4),
            "schedule": solar("sunrise", 38.7, -9.1),
            **to,
        },
    }


def options(queue: str) -> Schedule:
    """An entry with arguments and options."""
    return {
        "report": {
            "task": "tasks.basic.hello",
            "schedule": every(1),
            "kwargs": {"name": "beat"},
            "options": {"queue": queue, "priority": 2, "expires": 30},
        },
    }


def daily_and_ticks(queue: str) -> Schedule:
    """One entry that was due long ago, and one that shows that beat is running."""
    options = {"queue": queue}
    return {
        "daily": {"task": "daily", "schedule": crontab(hour=3, minute=0), "options": options, "last_run_at": LONG_AGO},
        "awake": {"task": "awake", "schedule": every(1), "options": options},
    }


def ticks(queue: str) -> Schedule:
    """A tick each second, noted under the name of the queue."""
    return {
        f"tick-{queue}": {
            "task": "tasks.advanced.tick",
            "args": (queue,),
            "schedule": every(1),
            "options": {"queue": queue},
        }
    }


def empty(queue: str) -> Schedule:
    """No entries: `Stored` reads them from Redis."""
    return {}


class Stored(Scheduler):
    """Reads its entries from a hash in Redis before each tick: name of the entry -> JSON with task, seconds, queue."""

    def tick(self, *args: Any, **kwargs: Any) -> float:
        stored = durable.store.hgetall(self.app.conf.schedule_key)
        entries = {name: json.loads(text) for name, text in stored.items()}
        self.merge_inplace(
            {
                name: {"task": entry["task"], "schedule": every(entry["seconds"]), "options": {"queue": entry["queue"]}}
                for name, entry in entries.items()
            }
        )
        return super().tick(*args, **kwargs)
