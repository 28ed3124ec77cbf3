"""Everything that the library raises of its own."""

from celery.exceptions import ImproperlyConfigured
from click import ClickException
from kombu.exceptions import EncodeError


class ConfigError(ValueError):
    """A `Config` that cannot work; one line for each field that is wrong."""


class DangerousSettingsError(ImproperlyConfigured, ClickException):
    """Settings of the app or of Redis that lose or repeat work; one line for each.

    Raised when a worker or beat starts, before it takes a message. It is a ClickException as well, so that `celery
    worker` prints the text alone and exits with code 1.
    """

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        ClickException.__init__(self, "\n".join(["Dangerous settings, refused:", *(f"  {line}" for line in problems)]))


class PublishRefusedError(EncodeError, ValueError):
    """A message that must not be published as it is; nothing was published. The text says what to change.

    Of a callback or the next task of a chain, an EncodeError is the failure of the task before it.
    """


class DelayTooLongError(PublishRefusedError):
    """A countdown, ETA or retry delay beyond `Config.max_delay`."""


class TimeLimitTooLongError(PublishRefusedError):
    """A hard time limit that is not below `Config.visibility_timeout`."""


class MessageTooLargeError(PublishRefusedError):
    """A message of more than `Config.max_message_bytes`."""


class NotInOutboxError(PublishRefusedError):
    """`later=True` for a task without the outbox, or an outbox task whose message is not JSON."""


class ResultTooLargeError(EncodeError):
    """A task returned more than `Config.max_result_bytes`. It is the task's failure."""


class EffectFailedError(Exception):
    """A command of an effect failed inside the transaction: Redis has applied the others, and does not roll back.

    Each later call of `once` for the same marker raises it again, until somebody repairs the data and deletes the
    marker.
    """


class DeadLetterDroppedError(Exception):
    """The task's message was a dead letter, and was dropped by hand. It is the failure of the task and of its chord."""


class NotRequeueableError(Exception):
    """A dead letter that cannot go back to a queue; the text says why."""
