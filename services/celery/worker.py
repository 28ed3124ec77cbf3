"""Starts a worker of one queue: `python worker.py high --concurrency=2`.

It runs `celery worker` with the common options of this stack; further options are passed on.
"""

import os
import sys

from queues import QUEUES


def command(queue: str, options: list[str]) -> list[str]:
    """The command that consumes a queue. Raises SystemExit for a queue that is not in queues.py."""
    names = [each.name for each in QUEUES]
    if queue not in names:
        raise SystemExit(f"worker: no queue {queue!r} in queues.py; choose one of {', '.join(names)}")
    return [
        *("celery", "-A", "celery_app", "worker", "--loglevel=INFO"),
        *("--queues", queue, "--hostname", f"{queue}@%h"),
        "--without-gossip",  # workers do not need each other's events
        *options,
    ]


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(f"worker: name a queue: {' or '.join(each.name for each in QUEUES)}")
    program = command(sys.argv[1], sys.argv[2:])
    os.execvp(program[0], program)  # noqa: S606 - no shell is wanted
