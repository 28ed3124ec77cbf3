"""Messages and units of work that took another way than their queue's."""

from prometheus_client import Counter

from settings import HIGH, LOW

DEAD_LETTERS = Counter("celery_dead_letters_total", "Messages that became dead letters.", ["queue", "reason"])
OUTBOX_WRITTEN = Counter("celery_outbox_written_total", "Units of work written to the outbox.", ["task"])
OUTBOX_REPUBLISHED = Counter(
    "celery_outbox_republished_total", "Units of work that the reconciler published again.", ["task", "queue"]
)


def count_dead_letter(queue: str, reason: str) -> None:
    """Count a dead letter. The name of its queue came with the message, so only known ones become a label."""
    DEAD_LETTERS.labels(queue if queue in (HIGH, LOW) else "other", reason).inc()
