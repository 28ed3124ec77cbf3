"""Messages published, counted in whichever process publishes."""

from prometheus_client import Counter

PUBLISHED = Counter("celery_published_total", "Messages that Redis has accepted.", ["task", "queue"])
PUBLISH_FAILURES = Counter(
    "celery_publish_failures_total",
    "Publishes that raised. The message may be in the queue all the same: an exception does not mean 'not enqueued'.",
    ["task"],
)
