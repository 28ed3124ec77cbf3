"""Metrics of published messages, dead letters and the outbox.

Names of tasks and queues that the app does not define are counted as `other`: callbacks, outbox entries and dead
letters contain names that anyone may have written, and each would be another series.
"""

from collections.abc import Iterator
from typing import Any

from prometheus_client import Counter
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from redis import RedisError

from celery_durable.dead_letters import Letter
from celery_durable.signals import (
    dead_letter_overflowed,
    message_dead_lettered,
    message_published,
    operation_fenced,
    outbox_republished,
    outbox_written,
    publish_failed,
)

PUBLISHED = Counter("celery_published_total", "Messages that Redis has accepted.", ["task", "queue"])
PUBLISH_FAILURES = Counter(
    "celery_publish_failures_total",
    "Publishes that raised. The message may still be in the queue: an exception does not mean 'not enqueued'.",
    ["task"],
)
DEAD_LETTERS = Counter("celery_dead_letters_total", "Messages that became dead letters.", ["queue", "reason"])
OVERFLOWED = Counter(
    "celery_dead_letters_overflowed_total", "Dead letters removed because the stream exceeded a limit."
)
OUTBOX_WRITTEN = Counter("celery_outbox_written_total", "Tasks written to the outbox.", ["task"])
OUTBOX_REPUBLISHED = Counter(
    "celery_outbox_republished_total", "Outbox entries that the reconciler published again.", ["task", "queue"]
)

FENCED = Counter(
    "celery_fenced_operations_total",
    "Acknowledgements, renewals and returns of messages that had been redelivered. They change nothing.",
    ["operation"],
)


def connect() -> None:
    """Connect the receivers; a second call changes nothing."""
    message_published.connect(_published)
    publish_failed.connect(_publish_failed)
    message_dead_lettered.connect(_dead_lettered)
    dead_letter_overflowed.connect(_overflowed)
    outbox_written.connect(_written)
    outbox_republished.connect(_republished)
    operation_fenced.connect(_fenced)
    for operation in ("acknowledge", "renew", "delay", "reject", "requeue"):
        FENCED.labels(operation)  # it begins at 0, so that the first increase counts


def _published(sender: Any, task: str, queue: str, **_: Any) -> None:
    PUBLISHED.labels(sender.durable.task_of(task), queue).inc()


def _publish_failed(sender: Any, task: str, **_: Any) -> None:
    PUBLISH_FAILURES.labels(sender.durable.task_of(task)).inc()


def _dead_lettered(sender: Any, letter: Letter, **_: Any) -> None:
    DEAD_LETTERS.labels(sender.durable.queue_of({"queue": letter.queue}), letter.reason).inc()


def _overflowed(**_: Any) -> None:
    OVERFLOWED.inc()


def _written(sender: Any, task: str, **_: Any) -> None:
    OUTBOX_WRITTEN.labels(sender.durable.task_of(task)).inc()


def _republished(sender: Any, task: str, queue: str, **_: Any) -> None:
    durable = sender.durable
    OUTBOX_REPUBLISHED.labels(durable.task_of(task), durable.queue_of({"queue": queue})).inc()


def _fenced(operation: str, number: int, **_: Any) -> None:
    FENCED.labels(operation).inc(number)


class StoreCollector(Collector):
    """Reads the store at each scrape. While it is unavailable there are no samples."""

    def __init__(self, durable: Any) -> None:
        self._durable = durable

    def collect(self) -> Iterator[GaugeMetricFamily]:
        try:
            entries, overdue = self._durable.outbox.size(), self._durable.chords.overdue()
        except RedisError:
            return
        yield GaugeMetricFamily("celery_outbox_entries", "Outbox entries that have not ended.", value=entries)
        yield GaugeMetricFamily(
            "celery_chords_overdue", "Chords whose callback was not published in time.", value=overdue
        )
