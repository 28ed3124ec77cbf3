"""What ends a task from outside its process, and whether its message is dead then."""

from typing import Any

from billiard.einfo import ExceptionInfo
from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded

from delivery import outbox
from delivery.dead_letters import Reason
from metrics import tasks

SOFT_LIMIT_RETRIES = 3  # what is too slow is too slow at its twentieth try


class Request(tasks.Request):
    """A message that was acknowledged late and ends badly becomes a dead letter instead of being acknowledged."""

    _dead: tuple[Reason, str] | None = None

    def acknowledge(self) -> None:
        if self._dead is None or self.acknowledged:
            super().acknowledge()
        else:
            self.message.dead = self._dead
            self.reject(requeue=False)

    def on_failure(self, exc_info: ExceptionInfo, send_failed_event: bool = True, return_ok: bool = False) -> None:
        error = exc_info.exception
        error = getattr(error, "exc", error)  # billiard wraps it to keep its traceback
        allowed = self.task.max_retries
        if isinstance(error, SoftTimeLimitExceeded):
            allowed = SOFT_LIMIT_RETRIES if allowed is None else min(allowed, SOFT_LIMIT_RETRIES)
        last = allowed is not None and self._retries >= allowed
        if isinstance(error, Reject):
            self.message.dead = (Reason.REJECTED, str(error.reason))
        elif isinstance(error, TimeLimitExceeded):  # billiard tells of it here first, and of the time-out after
            self._dead = (Reason.TIME_LIMIT, f"{error.args[0]:g} s")
        elif isinstance(error, WorkerLostError | SystemExit):
            if last:
                self._dead = (Reason.WORKER_LOST, str(error))
        elif last and not isinstance(error, Ignore | Retry) and self._retries:
            self._dead = (Reason.RETRIES_EXHAUSTED, f"{type(error).__name__}: {error}")
        super().on_failure(exc_info, send_failed_event, return_ok)
        if self._dead and not self.task.acks_late:  # else it is ended with its message, unless that has gone back
            outbox.ended(self.id)

    def _announce_revoked(self, *args: Any, **kwargs: Any) -> None:
        super()._announce_revoked(*args, **kwargs)
        outbox.ended(self.id)

    @property
    def _retries(self) -> int:
        return self.request_dict.get("retries") or 0
