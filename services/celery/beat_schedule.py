"""What beat sends, and when. Every entry expires before it is due again, so that missed ticks do not pile up.

celery_durable adds one of its own: celery-durable.reconcile, every 10 s.
"""

from typing import Any

from celery_durable import every
from queues import DEFAULT, QUEUES


def entry(task: str, seconds: int, queue: str, priority: int) -> dict[str, Any]:
    """An entry due every so many seconds on the clock. Priorities: 0 is the most urgent, 9 the least, 5 the default."""
    options = {"queue": queue, "priority": priority, "expires": seconds}
    return {"task": task, "schedule": every(seconds), "options": options}


ENTRIES = {
    # >>> demo
    "index": entry("tasks.search.index_corpus", 60, DEFAULT.name, 5),
    "repair": entry("tasks.search.repair", 30, DEFAULT.name, 1),  # mends what is stuck: ahead of what is stuck
    "report": entry("tasks.maintenance.report", 60, DEFAULT.name, 3),
    "expire": entry("tasks.maintenance.expire", 600, DEFAULT.name, 7),
    # <<< demo
    **{f"canary-{queue.name}": entry("tasks.maintenance.canary", 15, queue.name, 5) for queue in QUEUES},
}
