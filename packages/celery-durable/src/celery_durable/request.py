"""Handles tasks that are ended from outside their process, and decides which messages become dead letters."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from billiard.einfo import ExceptionInfo
from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded

from celery_durable.dead_letters import Reason
from celery_durable.logs import get_logger
from celery_durable.outbox import PUBLICATION
from celery_durable.signals import request_ended

logger = get_logger(__name__)

SOFT_LIMIT_RETRIES = 3  # a task that is too slow will be too slow again


def _as_runtime_error(error: MemoryError) -> tuple[ExceptionInfo, RuntimeError]:
    try:
        raise RuntimeError(repr(error)) from error
    except RuntimeError as same:
        return ExceptionInfo(), same


class DurableRequest:
    """Mixin before Celery's Request, or the task's own.

    With late acknowledgement a message whose task fails for good becomes a dead letter instead of being acknowledged.
    """

    _dead: tuple[Reason, str] | None = None

    def __init__(self: Any, message: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(message, *args, **kwargs)  # type: ignore[call-arg]
        self.delivery_info["queue"] = (message.delivery_info or {}).get("queue")

    def acknowledge(self: Any) -> None:
        if self._dead is None or self.acknowledged:
            super().acknowledge()  # type: ignore[misc]
        else:
            self.message.dead = self._dead
            self.reject(requeue=False)

    def on_timeout(self: Any, soft: bool, timeout: float) -> None:
        if not soft:
            self._announce_end("time_limit")
        with self._redelivered_on_error():
            super().on_timeout(soft, timeout)  # type: ignore[misc]

    def end_at_time_limit(self: Any, limit: float) -> None:
        """What a prefork worker does after it has killed the task's process; here the caller ends the whole worker."""
        if not self.acknowledged:  # not with acknowledge(): that waits for the event loop
            if self.app.durable.config.dead_letters:
                self.message.dead = (Reason.TIME_LIMIT, f"{limit:g} s")
                self.message.reject()
            else:
                self.message.ack()
            self.acknowledged = True
        elif self.app.durable.config.dead_letters:
            self._end_entry()
        self.on_timeout(soft=False, timeout=limit)

    def on_failure(self: Any, exc_info: ExceptionInfo, send_failed_event: bool = True, return_ok: bool = False) -> None:
        error = exc_info.exception
        error = getattr(error, "exc", error)  # billiard wraps it to keep its traceback
        if isinstance(error, MemoryError):  # Celery ends the worker, and the message would end the next one
            exc_info, error = _as_runtime_error(error)
        lost = isinstance(error, WorkerLostError | SystemExit)
        if lost and not (self._already_revoked or self._already_cancelled):
            self._announce_end("worker_lost")
        if self.app.durable.config.dead_letters:
            self._classify(error)
        with self._redelivered_on_error():
            super().on_failure(exc_info, send_failed_event, return_ok)  # type: ignore[misc]
        if self._dead and not self.task.acks_late:  # else it ends with its message, unless that was requeued
            self._end_entry()

    @contextmanager
    def _redelivered_on_error(self: Any) -> Iterator[None]:
        """Celery's pool logs the error, such as one of the result backend. Then nothing would acknowledge the message,
        but it would be renewed, and take a slot, for as long as the worker lives."""
        try:
            yield
        except Exception:
            if self.app.durable.atomic and not self.message.acknowledged:
                self.message.channel.qos.let_go([self.message.delivery_tag])
            raise

    def _classify(self: Any, error: object) -> None:
        """Decide whether the message is a dead letter after this error."""
        retries, allowed = self.request_dict.get("retries") or 0, self.task.max_retries
        if isinstance(error, SoftTimeLimitExceeded):
            allowed = SOFT_LIMIT_RETRIES if allowed is None else min(allowed, SOFT_LIMIT_RETRIES)
        last = allowed is not None and retries >= allowed
        if isinstance(error, Reject):
            self.message.dead = (Reason.REJECTED, str(error.reason))
        elif isinstance(error, TimeLimitExceeded):  # billiard calls this before on_timeout
            self._dead = (Reason.TIME_LIMIT, f"{error.args[0]:g} s")
        elif isinstance(error, WorkerLostError | SystemExit):
            if last:
                self._dead = (Reason.WORKER_LOST, str(error))
        elif last and not isinstance(error, Ignore | Retry) and retries:
            self._dead = (Reason.RETRIES_EXHAUSTED, f"{type(error).__name__}: {error}")

    def terminate(self: Any, pool: Any, signal: Any = None) -> None:
        try:
            super().terminate(pool, signal)  # type: ignore[misc]
        except NotImplementedError:
            logger.warning("%s[%s] not terminated: this pool (%s) cannot end a task", self.name, self.id, pool)

    def _announce_revoked(self: Any, reason: str, terminated: bool, signum: int | None, expired: bool) -> None:
        self._announce_end("expired" if expired else "revoked")
        try:
            super()._announce_revoked(reason, terminated, signum, expired)  # type: ignore[misc]
        except Exception:  # otherwise it would be held, with its slot, for as long as the worker lives
            logger.exception("%s[%s]: its state %s was not stored", self.name, self.id, reason)
            self.acknowledge()
            self._already_revoked = True
        self._end_entry()

    def _announce_end(self: Any, outcome: str) -> None:
        queue = self.app.durable.queue_of(self.delivery_info)
        request_ended.send(sender=self.app, task=self.task.name, queue=queue, outcome=outcome)

    def _end_entry(self: Any) -> None:
        if publication := self.request_dict.get(PUBLICATION):
            self.app.durable.outbox.end(self.id, publication)
