"""What every task of the app can do besides Celery's own: `DurableTask`, put in front of the task's class."""

from typing import Any

from celery import Task
from celery.app.autoretry import add_autoretry_behaviour
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from celery.utils.imports import symbol_by_name
from kombu.exceptions import OperationalError
from redis import RedisError

from celery_durable.composing import in_front
from celery_durable.config import Config
from celery_durable.outbox import PUBLICATION, PUBLISH_ERRORS
from celery_durable.request import SOFT_LIMIT_RETRIES, DurableRequest

# A task in the outbox that met a Redis that is away or full, or whose worker was frozen until its soft limit was over,
# has not failed for good.
PASSING = (RedisError, OperationalError, SoftTimeLimitExceeded)
MAX_RETRIES = 20
MAX_BACKOFF = 15  # s


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

    def signature_from_request(
        self, request: Any = None, args: Any = None, kwargs: Any = None, queue: Any = None, **options: Any
    ) -> Any:
        """Celery's, for a retry, but to the queue that the message came from and to no other.

        Its exchange and key may lead to several. And an exchange that a process has not declared is a direct one for
        kombu: a retry to a topic vanishes.
        """
        came_from = ((self.request if request is None else request).delivery_info or {}).get("queue")
        if came_from and not queue and not options.keys() & {"exchange", "routing_key"}:
            queue, options = came_from, {"exchange_type": "direct", **options}
        return super().signature_from_request(request, args, kwargs, queue, **options)

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


def make_durable(task: Any, config: Config, **options: Any) -> None:
    """Make `DurableTask` the first class of a task, unless it is already. `options`: those of register_task."""
    own = type(task)
    if issubclass(own, DurableTask):
        return
    said = {*_said_by(own), *vars(task), *options}
    if "default_retry_delay" not in said:
        task.default_retry_delay = config.default_retry_delay
    if not hasattr(own, "outbox"):
        task.outbox = False
    if task.outbox:
        _be_patient(task, config, said, options)
    task.__class__ = in_front(DurableTask, own)


def _be_patient(task: Any, config: Config, said: set[str], options: dict[str, Any]) -> None:
    """Have a task retried when what it met goes away by itself, besides whatever else it is retried for.

    How often and how soon is the task's own word, or its base class's, where one of them says it.
    """
    retry_kwargs = options.get("retry_kwargs", getattr(task, "retry_kwargs", {}))
    if not said & {"max_retries"} | retry_kwargs.keys() & {"max_retries"}:
        task.max_retries = MAX_RETRIES
    if not said & {"retry_backoff", "default_retry_delay"} | retry_kwargs.keys() & {"countdown", "eta"}:
        task.retry_backoff = 1
    if "retry_backoff_max" not in said:
        task.retry_backoff_max = min(MAX_BACKOFF, config.max_delay)
    errors = options.get("autoretry_for", getattr(task, "autoretry_for", ()))
    task.autoretry_for = (*errors, *PASSING)
    if "_orig_run" in vars(task):  # Celery has made it retry already
        task.run = task.__dict__.pop("_orig_run")
    add_autoretry_behaviour(task, **{**options, "autoretry_for": task.autoretry_for})


def _said_by(own: type) -> set[str]:
    """Names of the options that a class and its bases give, Celery's own Task aside."""
    return {name for each in own.__mro__ if each.__module__ != Task.__module__ for name in vars(each)}
