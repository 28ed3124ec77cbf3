"""What every task of the app can do besides Celery's own: `DurableTask`, put in front of the task's class."""

from typing import Any

from celery import Task
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from celery.utils.imports import symbol_by_name
from kombu.exceptions import OperationalError
from redis import RedisError

from celery_durable.composing import in_front
from celery_durable.config import Config
from celery_durable.outbox import PUBLICATION, PUBLISH_ERRORS
from celery_durable.request import SOFT_LIMIT_RETRIES, DurableRequest

# A task in the outbox that met a Redis that is away or full, or whose worker was frozen until its soft limit was over,
# has not failed for good. What the task or its base class says itself goes before these.
PATIENCE: dict[str, Any] = {"retry_backoff": 1, "retry_backoff_max": 15, "max_retries": 20}
PASSING = (RedisError, OperationalError, SoftTimeLimitExceeded)


class DurableTask(Task):
    """The first class of each task, before its own and the user's base class. It has no options: those come after."""

    @property
    def Request(self) -> type:  # noqa: N802 - Celery's name
        """The worker's class of requests for this task."""
        return in_front(DurableRequest, symbol_by_name(super().Request))  # type: ignore[no-any-return]

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """Ignores a message of the outbox whose place a newer one has taken."""
        publication = self.request.get(PUBLICATION)
        if publication and not self.app.durable.outbox.start(task_id, publication):
            self.request.outbox_stays = True  # it is the newer one's
            raise Ignore
        super().before_start(task_id, args, kwargs)

    def retry(self, *args: Any, eta: Any = None, countdown: float | None = None, **options: Any) -> Any:
        """Celery's retry, but never sooner than Config.min_retry_delay (jitter may say 0 s), and a soft time limit is
        tried again three times only."""
        if eta is None:
            delay = self.default_retry_delay if countdown is None else countdown
            countdown = max(self.app.durable.config.min_retry_delay, delay)
        error = options.get("exc")  # its max_retries would stay with the task: Celery keeps what retry() was given
        if isinstance(error, SoftTimeLimitExceeded) and self.request.retries >= SOFT_LIMIT_RETRIES:
            raise error
        try:
            return super().retry(*args, eta=eta, countdown=countdown, **options)
        except Reject as error:
            if isinstance(error.reason, PUBLISH_ERRORS):  # Celery would drop the message: it stays, and runs again
                raise Reject(error.reason, requeue=True) from error
            raise


def put_in_front(task: Any, config: Config) -> None:
    """Make `DurableTask` the first class of a task, unless it is already."""
    own = type(task)
    if issubclass(own, DurableTask):
        return
    if "default_retry_delay" not in said_by(own):
        task.default_retry_delay = config.default_retry_delay
    if not hasattr(own, "outbox"):
        task.outbox = False
    task.__class__ = in_front(DurableTask, own)


def patient(base: type, options: dict[str, Any]) -> dict[str, Any]:
    """Options of a task; one in the outbox is retried when what it met goes away by itself.

    Errors are added to those that the task and its base class name. Of `PATIENCE` applies what neither says.
    """
    if not options.get("outbox", getattr(base, "outbox", False)):
        return options
    errors = options.get("autoretry_for", getattr(base, "autoretry_for", ()))
    said = said_by(base) | set(options.get("retry_kwargs", getattr(base, "retry_kwargs", {})))
    defaults = {name: value for name, value in PATIENCE.items() if name not in said}
    return {**defaults, **options, "autoretry_for": (*errors, *PASSING)}


def said_by(base: type) -> set[str]:
    """Names of the options that a class and its bases give, Celery's own Task aside."""
    return {name for each in base.__mro__ if each.__module__ != Task.__module__ for name in vars(each)}
