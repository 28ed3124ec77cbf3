"""`DurableTask`, the library's first base class of every task of the app."""

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

# Errors after which an outbox task is retried: Redis is unavailable or full, or the worker was frozen beyond the soft
# time limit.
TRANSIENT = (RedisError, OperationalError, SoftTimeLimitExceeded)
MAX_RETRIES = 20
MAX_BACKOFF = 15  # s


class DurableTask(Task):
    """The first class of each task, before its own and the user's base class. It sets no options: those do."""

    @property
    def Request(self) -> type:  # noqa: N802 - Celery's name
        """The worker's class of requests for this task."""
        return in_front(DurableRequest, symbol_by_name(super().Request))  # type: ignore[no-any-return]

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """Ignores a message of an outbox entry that a newer message has replaced."""
        publication = self.request.get(PUBLICATION)
        if publication and not self.app.durable.outbox.start(task_id, publication):
            self.request.outbox_stays = True  # the entry belongs to the newer message
            raise Ignore
        super().before_start(task_id, args, kwargs)

    def signature_from_request(
        self, request: Any = None, args: Any = None, kwargs: Any = None, queue: Any = None, **options: Any
    ) -> Any:
        """Celery's, but a retry goes only to the queue that the message came from.

        Its exchange and key may lead to several queues. And kombu takes an exchange that a process has not declared for
        a direct one: a retry to a topic is lost.
        """
        came_from = ((self.request if request is None else request).delivery_info or {}).get("queue")
        if came_from and not queue and not options.keys() & {"exchange", "routing_key"}:
            queue, options = came_from, {"exchange_type": "direct", **options}
        return super().signature_from_request(request, args, kwargs, queue, **options)

    def retry(self, *args: Any, eta: Any = None, countdown: float | None = None, **options: Any) -> Any:
        """Celery's retry, but never sooner than Config.min_retry_delay (jitter may give 0 s), and at most three times
        after a soft time limit."""
        if eta is None:
            delay = self.default_retry_delay if countdown is None else countdown
            countdown = max(self.app.durable.config.min_retry_delay, delay)
        error = options.get("exc")  # not by max_retries: Celery keeps on the task what retry() was given
        if isinstance(error, SoftTimeLimitExceeded) and self.request.retries >= SOFT_LIMIT_RETRIES:
            raise error
        try:
            return super().retry(*args, eta=eta, countdown=countdown, **options)
        except Reject as error:
            if isinstance(error.reason, PUBLISH_ERRORS):  # Celery would drop the message: requeue it instead
                raise Reject(error.reason, requeue=True) from error
            raise


def make_durable(task: Any, config: Config, **options: Any) -> None:
    """Make `DurableTask` the first class of a task, unless it is already. `options`: those of register_task."""
    own = type(task)
    if issubclass(own, DurableTask):
        return
    given = {*_options_set_by(own), *vars(task), *options}
    if "default_retry_delay" not in given:
        task.default_retry_delay = config.default_retry_delay
    if not hasattr(own, "outbox"):
        task.outbox = False
    if task.outbox:
        _retry_transient_errors(task, config, given, options)
    task.__class__ = in_front(DurableTask, own)


def _retry_transient_errors(task: Any, config: Config, given: set[str], options: dict[str, Any]) -> None:
    """Retry a task after transient errors, in addition to its own `autoretry_for`.

    Number and delays of the retries are the task's or its base class's own, if set.
    """
    retry_kwargs = options.get("retry_kwargs", getattr(task, "retry_kwargs", {}))
    if not given & {"max_retries"} | retry_kwargs.keys() & {"max_retries"}:
        task.max_retries = MAX_RETRIES
    if not given & {"retry_backoff", "default_retry_delay"} | retry_kwargs.keys() & {"countdown", "eta"}:
        task.retry_backoff = 1
    if "retry_backoff_max" not in given:
        task.retry_backoff_max = min(MAX_BACKOFF, config.max_delay)
    errors = options.get("autoretry_for", getattr(task, "autoretry_for", ()))
    task.autoretry_for = (*errors, *TRANSIENT)
    if "_orig_run" in vars(task):  # Celery has wrapped it for autoretry already
        task.run = task.__dict__.pop("_orig_run")
    add_autoretry_behaviour(task, **{**options, "autoretry_for": task.autoretry_for})


def _options_set_by(own: type) -> set[str]:
    """Names of the options that a class and its bases set, except Celery's own Task."""
    return {name for each in own.__mro__ if each.__module__ != Task.__module__ for name in vars(each)}
