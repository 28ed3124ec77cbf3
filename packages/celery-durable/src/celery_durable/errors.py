"""The library's exceptions."""

from celery.exceptions import ImproperlyConfigured
from click import ClickException
from kombu.exceptions import EncodeError, OperationalError


class ConfigError(ValueError):
    """A `Config` that is not valid; one line for each wrong field."""


class DangerousSettingsError(ImproperlyConfigured, ClickException):
    """Settings of the app or of Redis that lose or repeat tasks; one line for each.

    Raised when a worker or beat starts, before it takes a message. It is a ClickException as well, so that `celery
    worker` prints the text alone and exits with code 1.
    """

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        ClickException.__init__(self, "\n".join(["Dangerous settings, refused:", *(f"  {line}" for line in problems)]))


class PublishRefusedError(EncodeError, ValueError):
    """A message that must not be published; nothing was published. The text says what to change.

    It is an EncodeError: if a callback or the next task of a chain is refused, the task before it fails.
    """


class DelayTooLongError(PublishRefusedError):
    """A countdown, ETA or retry delay beyond `Config.max_delay`."""


class MessageTooLargeError(PublishRefusedError):
    """A message of more than `Config.max_message_bytes`."""


class NotInOutboxError(PublishRefusedError):
    """`later=True` for a task without the outbox, or an outbox task whose message is not JSON."""


class BatchPublishError(OperationalError):
    """Tasks of a batch were not published, or it is not known whether they were.

    A call that raised another error is not published.
    """

    def __init__(self, refused: dict[str, str], unknown: list[str], published: list[str]) -> None:
        super().__init__(refused, unknown, published)
        self.refused = refused  #: error by task id: not published
        self.unknown = unknown  #: task ids: Redis has not replied
        self.published = published  #: task ids of the batch until then: published, or in the outbox

    def __str__(self) -> str:
        reason = next(iter(self.refused.values()), None) or str(self.__cause__ or "Redis has not replied")
        return f"{len(self.refused)} tasks not published, {len(self.unknown)} perhaps published: {reason}"


class ResultTooLargeError(EncodeError):
    """A task returned more than `Config.max_result_bytes`. The task fails with it."""


class EffectFailedError(Exception):
    """A command of an effect failed inside the transaction: Redis has applied the others, and does not roll back.

    Each later call of `once` for the same marker raises it again, until an operator repairs the data and deletes the
    marker.
    """


class DeadLetterDroppedError(Exception):
    """The task's message was a dead letter, and an operator dropped it. The task and its chord fail with it."""


class NotRequeueableError(Exception):
    """A dead letter that cannot be requeued; the text says why."""
