"""The queues: one entry each. Add one, then `make up`: it gets its own workers, alerts and panels
(docs/your-own-tasks.md). `make queues` writes all files that depend on this table.

Read by the app, and by scripts/queues.py and grafana/src on the host: it may import only the standard library.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

PRIORITIES = 10  # of the messages in a queue: 0 is the most urgent, 9 the least
DEFAULT_PRIORITY = 5  # otherwise on Redis tasks without a priority (0) run before all others


@dataclass(frozen=True)
class TaskQueue:
    """A queue, and the workers that consume it."""

    name: str  # a lower-case letter, then letters, digits and dashes; its workers are the service worker-<name>
    tasks: tuple[str, ...] = ()  # names of the tasks that are routed here, or patterns like "tasks.billing.*"
    concurrency: int = 2  # pool processes of a worker container; WORKER_<NAME>_CONCURRENCY in .env
    replicas: int = 1  # containers; WORKER_<NAME>_REPLICAS in .env, `make scale`
    max_wait: int = 300  # s that the oldest message may wait before OldestMessageTooOld fires
    urgent: bool = False  # that alert is critical, not a warning
    color: str = "purple"  # on the dashboards

    def __post_init__(self) -> None:
        if not re.fullmatch("[a-z][a-z0-9-]*", self.name):
            raise ValueError(f"queue {self.name!r}: a name is a lower-case letter, then letters, digits and dashes")
        for name in ("concurrency", "replicas", "max_wait"):
            value, least = getattr(self, name), 0 if name == "replicas" else 1
            if not isinstance(value, int) or value < least:
                raise ValueError(f"queue {self.name}: {name} is {value!r}; it must be a whole number, at least {least}")


# Callers wait for the tasks in `high`; its workers run no long tasks.
HIGH = TaskQueue(
    "high",
    tasks=("tasks.search.search", "tasks.search.stats"),  # demo
    max_wait=30,
    urgent=True,
    color="orange",
)
LOW = TaskQueue("low", color="blue")

QUEUES = (HIGH, LOW)
DEFAULT = LOW  # of tasks that no queue names
