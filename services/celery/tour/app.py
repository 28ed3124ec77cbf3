"""The app of the processes that a lesson starts for itself: the stack's, on a private queue, in nobody's statistics.

`celery -A tour.app worker|beat …` is started by tour/processes.py with TOUR_PROCESS, a JSON object: `queue`, and if
there are any `settings` (Celery's), `transport` (options of it), `schedule` (a function of tour/schedules.py).
"""

import json
import os
from typing import Any

from celery import signals
from kombu import Exchange, Queue

from celery_app import app
from tour import schedules
from worker import check_settings

PREFIX = "low-tour-"  # the Redis user `celery` may use keys that begin like the queues


def private_queue(name: str) -> Queue:
    """A queue beside the stack's."""
    return Queue(name, Exchange(name), routing_key=name)


def private_keys(queue: str) -> dict[str, str]:
    """The transport's options that keep unacknowledged messages and dead letters apart from the stack's: a worker gives
    back whatever is unacknowledged past its own visibility timeout, be it another's."""
    unacked = {f"unacked{kind}_key": f"{queue}-unacked{kind}" for kind in ("", "_index", "_mutex")}
    return {**unacked, "dead_letter_key": f"{queue}-dead-letters"}


def configure(process: dict[str, Any]) -> None:
    """Make of the stack's app that of a private process."""
    queue = process["queue"]
    app.conf.task_queues = [*app.conf.task_queues, private_queue(queue)]
    transport = {**app.conf.broker_transport_options, **private_keys(queue), **process.get("transport", {})}
    app.conf.update({"broker_transport_options": transport, **process.get("settings", {})})
    if "schedule" in process:
        app.conf.beat_schedule = getattr(schedules, process["schedule"])(queue)
    app.steps["worker"].clear()  # no place in the registry of workers, no metrics port
    signals.celeryd_init.disconnect(check_settings)  # a lesson may show what is refused elsewhere


if "TOUR_PROCESS" in os.environ:
    configure(json.loads(os.environ["TOUR_PROCESS"]))
