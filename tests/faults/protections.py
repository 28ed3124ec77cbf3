"""Each protection, and the fault that it protects from: with its switch off that row must go red."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Protection:
    """`make test-faults WITHOUT=name`; the name is the switch, a field of celery_durable.Config."""

    name: str
    what: str  # it is
    fault: str  # name of a row of faults/table.py


PROTECTIONS = (
    Protection(
        "outbox",
        "a task is written to the store before it is published, and published again until it has ended",
        "broker-emptied",
    ),
    Protection("done_markers", "an effect is applied in one step with its done marker", "worker-away"),
    Protection("acks_late", "a message is acknowledged when its task is done", "soft-stop"),
    Protection("worker_lost", "a task whose process was killed is retried, or its message given back", "child-kill"),
    Protection("renewal", "a worker renews the messages that it holds", "rate-limit"),
    Protection("publish_timeout", "a publisher's connection has a socket timeout", "redis-pause"),
    Protection("watchdog", "a worker that hangs ends itself", "worker-hung"),
    Protection("consumer", "a message that cannot be read becomes a dead letter", "malformed"),
    Protection("dead_letters", "a task over its hard limit becomes a dead letter", "overrun"),
)
