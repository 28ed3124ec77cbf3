"""The Celery app: `celery -A celery_app worker|beat|flower|status|inspect …` in this folder."""

import time
from collections.abc import Callable
from typing import Any

import celery
from celery import Celery, signals
from celery.exceptions import Reject, SoftTimeLimitExceeded
from kombu import Connection
from kombu.exceptions import OperationalError
from redis import RedisError

import timing
from beat_schedule import ENTRIES
from delivery import outbox
from delivery.outbox import PUBLISH_ERRORS
from delivery.request import SOFT_LIMIT_RETRIES, Request
from metrics.publishing import PUBLISH_FAILURES, PUBLISHED
from settings import CELERY
from tasks.arguments import ArgumentError
from worker import STEPS

# A unit of work that met a Redis that is away or full, or whose worker was frozen until its soft limit was over, has
# not failed for good. Its own options add to this, or replace it.
PATIENT = {"retry_backoff": 1, "retry_backoff_max": 15, "max_retries": 20}
PASSES = (RedisError, OperationalError, SoftTimeLimitExceeded)


class Task(celery.Task):
    """The base of every task here."""

    Request = Request
    max_retries = 3
    default_retry_delay = 5  # s; Celery's 3 minutes would outlast the visibility timeout
    outbox = False  # True: a unit of work that must happen, see delivery/outbox.py
    dont_autoretry_for = (ArgumentError,)
    throws = (ArgumentError,)  # the caller's mistake: no traceback in the worker's log

    def retry(self, *args: Any, eta: Any = None, countdown: float | None = None, **options: Any) -> Any:
        """Celery's retry, but never at once, as jitter may have it (0 s): the next try can then end before this one
        has stored RETRY, which hides its SUCCESS for ever (the stack tests met it)."""
        if eta is None:
            delay = self.default_retry_delay if countdown is None else countdown
            countdown = max(timing.MIN_RETRY_DELAY, delay)
        error = options.get("exc")  # its max_retries would stay with the task: Celery keeps what retry() was given
        if isinstance(error, SoftTimeLimitExceeded) and self.request.retries >= SOFT_LIMIT_RETRIES:
            raise error
        try:
            return super().retry(*args, eta=eta, countdown=countdown, **options)
        except Reject as error:
            if isinstance(error.reason, PUBLISH_ERRORS):  # Celery would drop the message: it stays, and runs again
                raise Reject(error.reason, requeue=True) from error
            raise


class App(Celery):
    """Celery, with time-outs for publishers and a count of what could not be published."""

    def connection_for_write(self, url: str | None = None, **kwargs: Any) -> Connection:
        """A publisher's connection: without a socket timeout a frozen Redis holds the caller for over 45 s.

        And without health checks: a PING before the message would wait for a time-out of its own."""
        kwargs["transport_options"] = {
            "socket_connect_timeout": timing.PUBLISH_CONNECT_TIMEOUT,
            "socket_timeout": timing.PUBLISH_SOCKET_TIMEOUT,
            "health_check_interval": 0,
            "max_retries": 0,  # of a new connection, kombu's own: they hold a publish for 6 s where it is refused
            **(kwargs.get("transport_options") or {}),
        }
        return super().connection_for_write(url, **kwargs)

    def _get_backend(self) -> Any:
        """Celery's result backend, with two changes.

        Publishing leaves it alone: Celery subscribes to a result when it publishes its task, and without redis-results
        that publish hangs for 20 s and fails. Whoever waits subscribes then. And a unit that could not be counted as a
        part of its chord has not ended.
        """
        backend = super()._get_backend()
        backend.on_task_call = lambda producer, task_id: {}
        count_part = backend.on_chord_part_return

        def on_chord_part_return(*args: Any, **kwargs: Any) -> Any:
            try:
                return count_part(*args, **kwargs)
            except RedisError:  # the chord would wait for this part for ever
                outbox.goes_on()
                raise

        backend.on_chord_part_return = on_chord_part_return
        return backend

    def _task_from_fun(self, fun: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Makes a task of a function; one with `outbox = True` is retried when what it met goes away by itself."""
        if options.get("outbox", getattr(options.get("base"), "outbox", False)):
            options = {**PATIENT, **options, "autoretry_for": (*options.get("autoretry_for", ()), *PASSES)}
        return super()._task_from_fun(fun, *args, **options)

    def send_task(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Publish; every way to publish (delay, canvas, retry, beat) ends here. Raises kombu's OperationalError."""
        try:
            return super().send_task(name, *args, **kwargs)
        except Exception as error:
            PUBLISH_FAILURES.labels(name).inc()
            if isinstance(error, PUBLISH_ERRORS):
                outbox.goes_on()
            raise


app = App("celery_app", task_cls=Task, amqp="delivery.publishing:AMQP")
app.conf.update(CELERY, beat_schedule=ENTRIES)
app.autodiscover_tasks(["tasks"], related_name="shared")
app.steps["worker"].update(STEPS)


@signals.before_task_publish.connect
def stamp(headers: dict[str, Any], **_: Any) -> None:
    """Each message carries when it was published: queue wait and message age are counted from it."""
    headers["published_at"] = time.time()


@signals.after_task_publish.connect
def count_published(sender: str, routing_key: str, **_: Any) -> None:
    PUBLISHED.labels(sender, routing_key).inc()
