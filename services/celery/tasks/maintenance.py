"""Periodic tasks that check the stack itself (beat_schedule.py): canaries and a report.

Each can be called manually, and be sent twice for one due time (celery_durable.PeriodicTask).
"""

import json
import time
from typing import Any

from celery_app import app, durable
from celery_durable import PeriodicTask
from queues import QUEUES
from search import index  # demo
from settings import DELIVERY

KEPT_FOR = 3600  # s that a canary's record or a report is kept
DOCUMENTS_A_CALL = 500  # removed per call, about 10 ms each; demo


@app.task(base=PeriodicTask, bind=True)
def canary(self: PeriodicTask) -> None:
    """Write to `canary:<queue>` when it ran, how long it waited (s), and on which worker."""
    now = time.time()
    published = (self.request.headers or {}).get("published_at", now)
    queue = (self.request.delivery_info or {}).get("routing_key", "")
    sign = {"ran": now, "waited": round(max(0.0, now - published), 3), "worker": self.request.hostname}
    durable.store.set(f"canary:{queue}", json.dumps(sign), ex=KEPT_FOR)


@app.task(base=PeriodicTask, ignore_result=False)
def report() -> dict[str, Any]:
    """A summary of the stack's state, kept under `report:last`.

    {"at" (epoch s), "canaries": {queue: record or None}, "workers": {"alive", "gone"}}.
    """
    store, now = durable.store, time.time()
    canaries = {queue.name: store.get(f"canary:{queue.name}") for queue in QUEUES}
    workers, stale = durable.workers(), now - 3 * DELIVERY.registration_interval
    gone = sorted(name for name, entry in workers.items() if entry["heartbeat"] < stale)
    state = {
        "at": now,
        "index": index.stats(store),  # demo
        "canaries": {queue: json.loads(sign) if sign else None for queue, sign in canaries.items()},
        "workers": {"alive": len(workers) - len(gone), "gone": gone[:20]},
    }
    store.set("report:last", json.dumps(state), ex=KEPT_FOR)
    return state


# >>> demo
@app.task(base=PeriodicTask, ignore_result=False)
def expire() -> dict[str, Any]:
    """Remove postings of documents that are in no generation of the index."""
    return {"documents": index.remove_unused_documents(durable.store, DOCUMENTS_A_CALL)}


# <<< demo
