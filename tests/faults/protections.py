"""Each protection, and the fault that it protects from: if it is turned off that row must fail."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Protection:
    """`make test-faults WITHOUT=name`; the name is a field of celery_durable.Config."""

    name: str
    what: str
    fault: str  # name of a row of faults/table.py


PROTECTIONS = (
    Protection(
        "outbox",
        "a task is written to the store before it is published, and published again until it has ended",
        "broker-emptied",
    ),
    Protection("done_markers", "an effect is applied in one step with its done marker", "worker-away"),
    Protection("acks_late", "a message is acknowledged when its task is done", "soft-stop"),
    Protection("worker_lost", "a task whose process was killed is retried, or its message requeued", "child-kill"),
    Protection("renewal", "a worker renews the messages that it holds", "rate-limit"),
    Protection("publish_timeout", "a publisher's connection has a socket timeout", "redis-pause"),
    Protection("watchdog", "a worker that hangs exits", "worker-hung"),
    Protection("consumer", "a message that cannot be read becomes a dead letter", "malformed"),
    Protection("dead_letters", "a task over its hard limit becomes a dead letter", "overrun"),
)
