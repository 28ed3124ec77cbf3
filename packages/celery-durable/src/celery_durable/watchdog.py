"""A hung or deaf worker exits: supervisors restart a process that has exited, not one that is only unhealthy.

Hung: its event loop is blocked (for example waiting for a reply on a connection whose peer has disappeared). Deaf: the
loop runs and the worker is idle, but it takes none of the waiting messages (for example after a leaked prefetch slot).
Time is counted in iterations of the watchdog thread, so that a process that was frozen or starved of CPU does not count
as hung. A blocked loop is accepted while one of the two Redis does not answer, and while the solo pool runs a task.
"""

import os
from collections.abc import Callable
from typing import Any

from celery import bootsteps
from celery.concurrency import solo
from celery.worker import WorkController, state
from redis import RedisError

from celery_durable.background import Background
from celery_durable.config import Config
from celery_durable.logs import get_logger

logger = get_logger(__name__)

EXIT_CODE = 70  # EX_SOFTWARE (sysexits.h)


class Diagnosis:
    """The state of a worker between two checks; `problem` returns what is wrong with it, or an empty string."""

    def __init__(
        self,
        config: Config,
        turns: Callable[[], int],
        may_block: Callable[[], bool],
        received: Callable[[], int],
        idle: Callable[[], bool],
        waiting: Callable[[], bool],
    ) -> None:
        self._config = config
        self._turns, self._may_block = turns, may_block
        self._received, self._idle, self._waiting = received, idle, waiting
        self._seen_turns, self._blocked_for = -1, 0.0
        self._seen_received, self._deaf_for = -1, 0.0

    def problem(self) -> str:
        """Called every Config.watchdog_interval seconds."""
        turns, received, interval = self._turns(), self._received(), self._config.watchdog_interval
        blocked = turns == self._seen_turns and not self._may_block()
        self._blocked_for = self._blocked_for + interval if blocked else 0.0
        self._seen_turns = turns
        if self._blocked_for >= self._config.hung_after:
            return f"its event loop has been blocked for {self._blocked_for:g} s"
        if received == self._seen_received and self._idle() and self._waiting():
            self._deaf_for += interval
        else:
            self._deaf_for = 0.0
        self._seen_received = received
        if self._deaf_for >= self._config.deaf_after:
            return f"it has been idle for {self._deaf_for:g} s and took none of the waiting messages"
        return ""


class Watchdog(bootsteps.StartStopStep):
    """Checks from a thread while the worker runs."""

    # Started after the pool, and so stopped before it: a pool that waits for its last tasks blocks the loop.
    requires = ("celery.worker.components:Timer", "celery.worker.components:Pool")

    def __init__(self, parent: WorkController, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        self._turned = 0

    def include_if(self, parent: WorkController) -> bool:
        config = parent.app.durable.config
        return bool(config.watchdog and config.consumer)  # Celery's own consumer does not count messages

    def start(self, parent: WorkController) -> None:
        parent.timer.call_repeatedly(1, self._turn)
        diagnosis = self._diagnosis(parent)

        def look() -> None:
            if problem := diagnosis.problem():
                logger.critical("watchdog: this worker exits: %s", problem)
                os._exit(EXIT_CODE)

        self._thread = Background("watchdog", parent.app.durable.config.watchdog_interval, look)

    def stop(self, parent: WorkController) -> None:
        self._thread.stop()  # a stopping worker may be slow; stop_grace_period limits it

    terminate = stop

    def _turn(self) -> None:
        self._turned += 1

    def _diagnosis(self, worker: WorkController) -> Diagnosis:
        durable = worker.app.durable

        def answers() -> bool:
            try:
                return bool(durable.broker.ping() and durable.store.ping())
            except RedisError:
                return False

        def waiting() -> bool:
            queues = worker.app.amqp.queues.consume_from
            lists = [name for queue in queues.values() for name in durable.priority_lists(queue.name)]
            try:
                return bool(lists and durable.broker.exists(*lists))
            except RedisError:
                return False  # no worker can take messages now

        def idle() -> bool:
            consumer = worker.consumer
            consumes = consumer.task_consumer is not None and bool(consumer.task_consumer.queues)
            return consumes and not state.reserved_requests and not consumer.held()

        def may_block() -> bool:
            return (isinstance(worker.pool, solo.TaskPool) and bool(state.active_requests)) or not answers()

        return Diagnosis(
            durable.config, lambda: self._turned, may_block, lambda: worker.consumer.received, idle, waiting
        )
