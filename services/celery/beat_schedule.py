"""What beat sends, and when. Every entry expires before it is due again, so that missed ticks do not pile up."""

from typing import Any

import timing
from scheduler import every
from settings import HIGH, LOW


def entry(task: str, seconds: int, queue: str, priority: int) -> dict[str, Any]:
    """An entry due every so many seconds on the clock. Priorities: 0 is the most urgent, 9 the least, 5 the default."""
    options = {"queue": queue, "priority": priority, "expires": seconds}
    return {"task": task, "schedule": every(seconds), "options": options}


ENTRIES = {
    "index": entry("tasks.search.index_corpus", 60, LOW, 5),
    "canary-high": entry("tasks.maintenance.canary", 15, HIGH, 5),
    "canary-low": entry("tasks.maintenance.canary", 15, LOW, 5),
    "reconcile": entry("tasks.maintenance.reconcile", 30, LOW, 1),  # mends what is stuck: ahead of what is stuck
    "republish": entry("tasks.maintenance.republish", timing.OUTBOX_INTERVAL, HIGH, 1),
    "report": entry("tasks.maintenance.report", 60, LOW, 3),
    "expire": entry("tasks.maintenance.expire", 600, LOW, 7),
}
