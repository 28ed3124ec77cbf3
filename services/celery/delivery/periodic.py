"""Periodic tasks that two beats may send: each due time of an entry runs once."""

from typing import Any

from celery.exceptions import Ignore
from celery.utils.log import get_task_logger
from redis import Redis

from celery_app import Task
from settings import results_client

logger = get_task_logger(__name__)

CLAIM_TTL = 86_400  # far longer than the messages of two beats can be apart: each has an expiry


def claim(client: Redis, entry: str, due: float, task_id: str) -> bool:
    """Whether this message may run for that due time: the first to ask may, and again when it is redelivered."""
    holder = client.set(f"once:beat:{entry}:{due:.3f}", task_id, nx=True, get=True, ex=CLAIM_TTL)
    return holder in (None, task_id)


class PeriodicTask(Task):
    """Base of what beat sends. The scheduler's headers `beat_entry` and `beat_due` name the tick; of all messages of a
    tick one runs, the others are ignored. Without these headers (a call by hand) it always runs."""

    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        headers = self.request.headers or {}
        entry, due = headers.get("beat_entry"), headers.get("beat_due")
        if entry is not None and due is not None and not claim(results_client(), entry, due, self.request.id):
            logger.info("%s ignored: another message of entry %s for %.3f is there (two beats?)", self.name, entry, due)
            raise Ignore
        return self.run(*args, **kwargs)
