"""The app of the processes that a lesson starts for itself: the stack's, on a private queue, in nobody's statistics.

`celery -A tour.app worker|beat …` is started by tour/processes.py with TOUR_PROCESS, a JSON object: `queue`, and if
there are any `settings` (Celery's), `schedule` (a function of tour/schedules.py). Its DELIVERY is in the environment.
"""

import json
import os
from typing import Any

from kombu import Exchange, Queue

from celery_app import app, durable
from celery_durable.dead_letters import DeadLetters
from tour import schedules

PREFIX = "low-tour-"  # the Redis user `celery` may use keys that begin like the queues


def private_queue(name: str) -> Queue:
    """A queue beside the stack's."""
    return Queue(name, Exchange(name), routing_key=name)


def unacked_keys(queue: str) -> dict[str, str]:
    """The transport's options that keep unacknowledged messages apart from the stack's: a worker gives back whatever is
    unacknowledged past its own visibility timeout, be it another's."""
    return {f"unacked{kind}_key": f"{queue}-unacked{kind}" for kind in ("", "_index", "_mutex")}


def dead_letters_of(queue: str) -> DeadLetters:
    """Dead letters of a private queue: they must not fire the stack's alert."""
    return DeadLetters(durable.config, f"{queue}-dead-letters")


def configure(process: dict[str, Any]) -> None:
    """Make of the stack's app that of a private process."""
    queue = process["queue"]
    app.conf.task_queues = [*app.conf.task_queues, private_queue(queue)]
    transport = {**app.conf.broker_transport_options, **unacked_keys(queue)}
    app.conf.update({"broker_transport_options": transport, **process.get("settings", {})})
    durable.dead_letters = dead_letters_of(queue)
    if "schedule" in process:
        app.conf.beat_schedule = getattr(schedules, process["schedule"])(queue)
    # No place in the registry of workers, no metrics port; and a lesson may show what is refused elsewhere.
    app.steps["worker"].clear()


if "TOUR_PROCESS" in os.environ:
    configure(json.loads(os.environ["TOUR_PROCESS"]))
