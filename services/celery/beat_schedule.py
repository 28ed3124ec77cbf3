"""What beat sends, and when. Every message expires before the entry is due again, so that they do not accumulate.

celery_durable adds an entry: celery_durable.reconcile, every 10 s.
"""

from typing import Any

from celery_durable import every
from queues import DEFAULT, QUEUES


def entry(task: str, seconds: int, queue: str, priority: int) -> dict[str, Any]:
    """An entry due every `seconds`, aligned to the clock. Priorities: 0 (most urgent) to 9; the default is 5."""
    options = {"queue": queue, "priority": priority, "expires": seconds}
    return {"task": task, "schedule": every(seconds), "options": options}


ENTRIES = {
    "report": entry("tasks.maintenance.report", 60, DEFAULT.name, 3),
    # >>> demo
    "index": entry("tasks.search.index_corpus", 60, DEFAULT.name, 5),
    "repair": entry("tasks.search.repair", 30, DEFAULT.name, 1),  # before the tasks that it repairs
    "expire": entry("tasks.maintenance.expire", 600, DEFAULT.name, 7),
    # <<< demo
    **{f"canary-{queue.name}": entry("tasks.maintenance.canary", 15, queue.name, 5) for queue in QUEUES},
}
