"""Text from messages in logs and in a command's output: it cannot forge a line, or control a terminal.

A name, an argument or an error of a message may contain any character. The library's own lines show control characters
escaped, and so do Celery's where Celery sets up the logging. There the lines of a record after its first are indented,
so that only a record begins at the start of a line.
"""

import logging
from typing import Any

from celery import signals
from celery.utils.log import ColorFormatter, get_multiprocessing_logger

from celery_durable.composing import in_front

INDENT = "    "


def escaped(value: object) -> str:
    """A value as text of printable characters."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def get_logger(name: str) -> logging.Logger:
    """A logger that escapes what its lines quote."""
    logger = logging.getLogger(name)
    logger.addFilter(_escape_arguments)
    return logger


def _escape_arguments(record: logging.LogRecord) -> bool:
    if isinstance(record.args, tuple):
        record.args = tuple(
            escaped(each) if isinstance(each, str | BaseException) and not str(each).isprintable() else each
            for each in record.args
        )
    return True


class Escaping(logging.Formatter):
    """Mixin before Celery's formatters."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return _escape_lines(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return INDENT + _escape_lines(super().formatException(ei))


def _escape_lines(text: str) -> str:
    return f"\n{INDENT}".join(escaped(line) for line in text.split("\n"))


def connect_logging() -> None:
    """Connect the receiver; a second call changes nothing."""
    signals.after_setup_logger.connect(_escape)
    signals.after_setup_task_logger.connect(_escape)


def _escape(logger: logging.Logger, **_: Any) -> None:
    for handler in [*logger.handlers, *get_multiprocessing_logger().handlers]:
        if isinstance(handler.formatter, ColorFormatter):
            handler.formatter.__class__ = in_front(Escaping, type(handler.formatter))
