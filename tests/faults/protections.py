"""Each protection, how it is switched off, and the fault that it protects from: without it that row must go red."""

from dataclasses import dataclass

# Changes of the code, as stack.changed_app takes them.
Code = tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Protection:
    """`make test-faults WITHOUT=name`."""

    name: str
    what: str  # it is
    fault: str  # name of a row of faults/table.py
    off: Code


PROTECTIONS = (
    Protection(
        "outbox",
        "a unit is written down before it is published, and published again until it has ended",
        "broker-emptied",
        (("delivery/publishing.py", "            unit.write()\n", "            later = False\n"),),
    ),
    Protection(
        "done-marker",
        "an effect is applied in one step with its done marker",
        "worker-away",
        (("delivery/once.py", "if done is not None:", "if False:"),),
    ),
    Protection(
        "acks-late",
        "a message is acknowledged when its task is done",
        "soft-stop",
        (
            # Early acknowledged tasks are prefetched in numbers, and would not fill each slot as the row asks.
            ("settings.py", '"task_acks_late": True', '"task_acks_late": False, "worker_disable_prefetch": True'),
            ("delivery/checks.py", "if not conf.task_acks_late:", "if False:"),  # it would refuse to start
        ),
    ),
    Protection(
        "worker-lost",
        "a task whose process was killed is retried, or its message given back",
        "child-kill",
        (
            ("settings.py", '"task_retry_on_worker_lost": True', '"task_retry_on_worker_lost": False'),
            ("settings.py", '"task_reject_on_worker_lost": True', '"task_reject_on_worker_lost": False'),
        ),
    ),
    Protection(
        "publish-timeout",
        "a publisher's connection has a socket timeout",
        "redis-pause",
        (("celery_app.py", '"socket_timeout": timing.PUBLISH_SOCKET_TIMEOUT,', ""),),
    ),
    Protection(
        "watchdog",
        "a worker that hangs ends itself",
        "worker-hung",
        (("delivery/watchdog.py", "if wrong := vigil.look():", "if (wrong := vigil.look()) and False:"),),
    ),
    Protection(
        "consumer",
        "a message that cannot be read becomes a dead letter",
        "malformed",
        (("settings.py", '"worker_consumer": "delivery.consumer:Consumer",', ""),),
    ),
    Protection(
        "dead-letters",
        "a task over its hard limit becomes a dead letter",
        "overrun",
        (("delivery/request.py", 'self._dead = (Reason.TIME_LIMIT, f"{error.args[0]:g} s")', "pass"),),
    ),
)
