"""Outcome, run time and queue wait of each task.

Pool children see what a task did (signals around its run); what only the main process sees, a revoked message, the hard
time limit, a lost child, is counted by `Request`. Successes cannot be counted there: Celery generates a subclass of
Request that overrides on_success.
"""

import time
from datetime import datetime
from typing import Any

from billiard.einfo import ExceptionInfo
from billiard.exceptions import WorkerLostError
from celery import Task, signals
from celery.worker import request as worker_request
from prometheus_client import Counter, Histogram

# From 1 ms to 10 min: a cached query and a task at the hard limit both fall inside.
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
    "celery_task_unstamped_total", "Tasks run without a publish stamp: no wait is known.", ["task", "queue"]
)
REDELIVERED = Counter("celery_task_redelivered_total", "Tasks run after their message was restored.", ["task", "queue"])


def due_at(published_at: float | None, eta: str | None, redelivered_at: float | None) -> float | None:
    """When a task could first have run (epoch seconds), or None for a message without a publish stamp."""
    if published_at is None:
        return None
    return max(published_at, datetime.fromisoformat(eta).timestamp() if eta else 0.0, redelivered_at or 0.0)


def _labels(task: Task) -> tuple[str, str]:
    return task.name, (task.request.delivery_info or {}).get("routing_key") or "none"


@signals.task_prerun.connect
def started(task: Task, **_: Any) -> None:
    request, labels = task.request, _labels(task)
    if not request.is_eager:
        due = due_at(request.get("published_at"), request.eta, request.get("redelivered_at"))
        if due is None:
            UNSTAMPED.labels(*labels).inc()
        else:
            WAIT.labels(*labels).observe(max(0.0, time.time() - due))
        if request.get("redelivered"):
            REDELIVERED.labels(*labels).inc()
    request.started_at = time.perf_counter()


@signals.task_postrun.connect
def finished(task: Task, state: str | None, **_: Any) -> None:
    labels = _labels(task)
    RUNTIME.labels(*labels).observe(time.perf_counter() - task.request.started_at)
    if state:  # None: the child is being killed, and the main process says why
        TASKS.labels(*labels, state.lower()).inc()


class Request(worker_request.Request):
    """Counts what ends a task from outside its child process."""

    def _count(self, outcome: str) -> None:
        TASKS.labels(self.name, self.delivery_info.get("routing_key") or "none", outcome).inc()

    def on_timeout(self, soft: bool, timeout: float) -> None:
        if not soft:
            self._count("time_limit")
        super().on_timeout(soft, timeout)

    def on_failure(self, exc_info: ExceptionInfo, send_failed_event: bool = True, return_ok: bool = False) -> None:
        lost = isinstance(exc_info.exception, WorkerLostError | SystemExit)
        if lost and not (self._already_revoked or self._already_cancelled):
            self._count("worker_lost")
        super().on_failure(exc_info, send_failed_event, return_ok)

    def _announce_revoked(self, reason: str, terminated: bool, signum: int | None, expired: bool) -> None:
        self._count("expired" if expired else "revoked")
        super()._announce_revoked(reason, terminated, signum, expired)
