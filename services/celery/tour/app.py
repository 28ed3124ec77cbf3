"""The app of the processes that a lesson starts: the stack's app on a private queue, without metrics and registration.

tour/processes.py starts `celery -A tour.app worker|beat …` with TOUR_PROCESS, a JSON object: `queue`, and optionally
`settings` (Celery's) and `schedule` (a function of tour/schedules.py). DELIVERY is set in the environment.
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
    """A queue of a lesson."""
    return Queue(name, Exchange(name), routing_key=name)


def unacked_keys(queue: str) -> dict[str, str]:
    """Transport options that separate unacknowledged messages from the stack's: a worker restores all messages that are
    unacknowledged for longer than its own visibility timeout, also those of other workers."""
    return {f"unacked{kind}_key": f"{queue}-unacked{kind}" for kind in ("", "_index", "_mutex")}


def dead_letters_of(queue: str) -> DeadLetters:
    """Dead letters of a private queue: they must not trigger the stack's alert."""
    return DeadLetters(durable.config, f"{queue}-dead-letters")


def configure(process: dict[str, Any]) -> None:
    """Configure the stack's app for a private process."""
    queue = process["queue"]
    app.conf.task_queues = [*app.conf.task_queues, private_queue(queue)]
    transport = {**app.conf.broker_transport_options, **unacked_keys(queue)}
    app.conf.update({"broker_transport_options": transport, **process.get("settings", {})})
    durable.dead_letters = dead_letters_of(queue)
    if app.conf.task_serializer == "auth":
        app.setup_security()
    if "schedule" in process:
        app.conf.beat_schedule = getattr(schedules, process["schedule"])(queue)
    # No registration, no metrics port, and no checks: a lesson may use settings that are refused elsewhere.
    app.steps["worker"].clear()


if "TOUR_PROCESS" in os.environ:
    configure(json.loads(os.environ["TOUR_PROCESS"]))
