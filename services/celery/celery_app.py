"""The Celery app: `celery -A celery_app worker|beat|flower|status|inspect …` in this folder."""

import celery
from celery import Celery

import celery_durable
from beat_schedule import ENTRIES
from settings import CELERY, DELIVERY
from tasks.arguments import ArgumentError


class Task(celery.Task):
    """The base class of every task: wrong arguments are never retried, and need no traceback in the worker's log."""

    abstract = True
    dont_autoretry_for = (ArgumentError,)
    throws = (ArgumentError,)


app = Celery("celery_app", task_cls=Task)
app.conf.update(CELERY, beat_schedule=ENTRIES)
app.autodiscover_tasks(["tasks"], related_name="shared")

durable = celery_durable.install(app, DELIVERY)
