"""What beat runs besides indexing (beat_schedule.py): canaries, a report, expiry, and mending of stuck runs.

Each is safe to call by hand, and to be sent twice for one due time (delivery/periodic.py).
"""

import json
import time
from typing import Any

from celery.utils.log import get_task_logger

import timing
from celery_app import app
from delivery import outbox
from delivery.periodic import PeriodicTask
from settings import HIGH, LOW, broker_client, results_client
from tasks import inverted_index, search
from worker import REGISTRY_KEY

logger = get_task_logger(__name__)

KEPT_FOR = 3600  # s, a canary or a report: what is older says nothing of today
WORKER_FORGOTTEN_AFTER = 86_400  # s since its last heartbeat
DOCUMENTS_A_CALL = 500  # removed, some 10 ms each


@app.task(base=PeriodicTask, bind=True)
def canary(self: PeriodicTask) -> None:
    """Leave a sign of life in `canary:<queue>`: when it ran, how long it waited (s), and where."""
    now = time.time()
    published = (self.request.headers or {}).get("published_at", now)
    queue = (self.request.delivery_info or {}).get("routing_key", "")
    sign = {"ran": now, "waited": round(max(0.0, now - published), 3), "worker": self.request.hostname}
    results_client().set(f"canary:{queue}", json.dumps(sign), ex=KEPT_FOR)


@app.task(base=PeriodicTask, ignore_result=False)
def report() -> dict[str, Any]:
    """The state of the stack in short, kept under `report:last`.

    {"at" (epoch s), "index": see search.stats, "canaries": {queue: sign or None}, "workers": {"alive", "gone"}}.
    """
    client, now = results_client(), time.time()
    canaries = {queue: client.get(f"canary:{queue}") for queue in (HIGH, LOW)}
    heartbeats = _heartbeats()
    gone = sorted(name for name, heartbeat in heartbeats.items() if now - heartbeat > 3 * timing.REGISTRY_INTERVAL)
    state = {
        "at": now,
        "index": inverted_index.stats(client),
        "canaries": {queue: json.loads(sign) if sign else None for queue, sign in canaries.items()},
        "workers": {"alive": len(heartbeats) - len(gone), "gone": gone[:20]},
    }
    client.set("report:last", json.dumps(state), ex=KEPT_FOR)
    return state


@app.task(base=PeriodicTask, ignore_result=False)
def expire() -> dict[str, Any]:
    """Remove postings of documents that are in no index, and registry entries of workers gone for over a day."""
    now = time.time()
    forgotten = [name for name, heartbeat in _heartbeats().items() if now - heartbeat > WORKER_FORGOTTEN_AFTER]
    if forgotten:
        broker_client().hdel(REGISTRY_KEY, *forgotten)
    return {
        "documents": inverted_index.remove_unused_documents(results_client(), DOCUMENTS_A_CALL),
        "workers": forgotten,
    }


@app.task(base=PeriodicTask, ignore_result=False)
def republish() -> dict[str, int]:
    """Publish again units of work that have not ended; see delivery/outbox.py."""
    return outbox.republish(app.amqp.send_unit)


@app.task(base=PeriodicTask, ignore_result=False)
def reconcile() -> dict[str, Any]:
    """Mend the active run of the index; see search.reconcile."""
    return search.reconcile()


def _heartbeats() -> dict[str, float]:
    return {name: json.loads(entry)["heartbeat"] for name, entry in broker_client().hgetall(REGISTRY_KEY).items()}
