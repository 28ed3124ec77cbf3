"""Outcome, run time and queue wait of each task.

Pool children count from Celery's signals before and after a run. A revoked message, the hard time limit and a lost
child are seen only by the main process, where the library sends `request_ended`.
"""

import time
from functools import cache
from typing import Any

from celery import Task, signals
from prometheus_client import Counter, Histogram

from celery_durable.signals import request_ended
from celery_durable.times import eta_of

# From 1 ms to 10 min: includes both a cached query and a task at the hard time limit.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

TASKS = Counter("celery_tasks_total", "Task runs and how they ended.", ["task", "queue", "outcome"])
RUNTIME = Histogram("celery_task_runtime_seconds", "Run time of a task.", ["task", "queue"], buckets=BUCKETS)
WAIT = Histogram(
    "celery_task_queue_wait_seconds",
    "From when a task was due (published, ETA, retry time or redelivery, whichever came last) until it ran.",
    ["task", "queue"],
    buckets=BUCKETS,
)
UNSTAMPED = Counter(
    "celery_task_unstamped_total", "Tasks run without a publish time: their wait is unknown.", ["task", "queue"]
)
REDELIVERED = Counter("celery_task_redelivered_total", "Tasks run after their message was restored.", ["task", "queue"])

# To look up the series in prometheus_client takes a third of the time that metrics take.
_ended, _runtime, _wait = cache(TASKS.labels), cache(RUNTIME.labels), cache(WAIT.labels)


def connect() -> None:
    """Connect the receivers; a second call changes nothing."""
    signals.task_prerun.connect(started)
    signals.task_postrun.connect(finished)
    request_ended.connect(ended_from_outside)


def due_at(published_at: float | None, eta: float, redelivered_at: float | None) -> float | None:
    """When a task could first have run (epoch seconds), or None for a message without a publish time."""
    return None if published_at is None else max(published_at, eta, redelivered_at or 0.0)


def started(task: Task, **_: Any) -> None:
    request = task.request
    headers = request.__dict__  # request.get() takes ten times as long
    durable = getattr(task.app, "durable", None)
    labels = task.name, durable.queue_of(headers.get("delivery_info")) if durable else "other"
    if not headers.get("is_eager"):
        due = due_at(headers.get("published_at"), eta_of(headers), headers.get("redelivered_at"))
        if due is None:
            UNSTAMPED.labels(*labels).inc()
        else:
            _wait(*labels).observe(max(0.0, time.time() - due))
        if headers.get("redelivered"):
            REDELIVERED.labels(*labels).inc()
    request.started = labels, time.perf_counter()


def finished(task: Task, state: str | None, **_: Any) -> None:
    labels, started_at = task.request.started
    _runtime(*labels).observe(time.perf_counter() - started_at)
    if state:  # None: the child is being killed; the main process counts the outcome
        _ended(*labels, state.lower()).inc()


def ended_from_outside(task: str, queue: str, outcome: str, **_: Any) -> None:
    _ended(task, queue, outcome).inc()
