"""Periodic tasks that several beat processes may send: each due time of an entry runs once."""

from typing import Any

from celery import Task
from celery.exceptions import Ignore
from celery.utils.log import get_task_logger
from redis import RedisError

logger = get_task_logger(__name__)

RECONCILE = "celery_durable.reconcile"  # the task, and beat's entry
ENTRY, DUE = "beat_entry", "beat_due"  # headers set by the library's scheduler


class PeriodicTask(Task):
    """Base class of periodic tasks. Of all messages for a due time one runs, the others are ignored.

    The library's scheduler sets entry and due time in headers. Without them (a manual call) the task always runs.
    """

    abstract = True

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        entry, due = self.request.get(ENTRY), self.request.get(DUE)
        try:
            runs = entry is None or due is None or self.app.durable.ticks.claim(entry, due, task_id)
        except RedisError as error:  # unknown whether it may run
            raise self.retry(exc=error) from error
        if not runs:
            logger.info("%s ignored: entry %s has another message for %.3f (two beats?)", self.name, entry, due)
            raise Ignore
        super().before_start(task_id, args, kwargs)
