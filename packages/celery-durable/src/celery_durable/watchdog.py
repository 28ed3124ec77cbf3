"""A worker that hangs or has gone deaf ends itself: what supervises it restarts what has ended, not what is unhealthy.

Hung: its event loop does not turn (a reply that never comes over a connection whose other end has vanished). Deaf: the
loop turns, messages wait, it is idle, and takes none (a leaked prefetch slot does that). Its own time is counted in
turns of the watching thread, so that a frozen or starved process is not taken for a hung one when it goes on. While one
of the two Redis does not answer, a loop that stands still waits for it; the solo pool runs its task in the loop.
"""

import logging
import os
from collections.abc import Callable
from typing import Any

from celery import bootsteps
from celery.concurrency import solo
from celery.worker import WorkController, state
from redis import RedisError

from celery_durable.background import Background
from celery_durable.config import Config

logger = logging.getLogger(__name__)

EXIT_CODE = 70  # EX_SOFTWARE (sysexits.h)


class Diagnosis:
    """What is known of a worker from one look to the next; `problem` says what is wrong with it, or nothing."""

    def __init__(
        self,
        config: Config,
        turns: Callable[[], int],
        may_stand: Callable[[], bool],
        received: Callable[[], int],
        idle: Callable[[], bool],
        waiting: Callable[[], bool],
    ) -> None:
        self._config = config
        self._turns, self._may_stand = turns, may_stand
        self._received, self._idle, self._waiting = received, idle, waiting
        self._seen_turns, self._still = -1, 0.0
        self._seen_received, self._unheard = -1, 0.0

    def problem(self) -> str:
        """Called every Config.watchdog_interval seconds."""
        turns, received, interval = self._turns(), self._received(), self._config.watchdog_interval
        stands = turns == self._seen_turns and not self._may_stand()
        self._still = self._still + interval if stands else 0.0
        self._seen_turns = turns
        if self._still >= self._config.hung_after:
            return f"its event loop has not turned for {self._still:g} s"
        if received == self._seen_received and self._idle() and self._waiting():
            self._unheard += interval
        else:
            self._unheard = 0.0
        self._seen_received = received
        if self._unheard >= self._config.deaf_after:
            return f"messages have waited for {self._unheard:g} s while it was idle and took none"
        return ""


class Watchdog(bootsteps.StartStopStep):
    """Watches from a thread, for as long as the worker runs."""

    # After the pool, and so stopped before it: a pool that waits for its last tasks holds the loop.
    requires = ("celery.worker.components:Timer", "celery.worker.components:Pool")

    def __init__(self, parent: WorkController, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        self._turned = 0

    def include_if(self, parent: WorkController) -> bool:
        config = parent.app.durable.config
        return bool(config.watchdog and config.consumer)  # Celery's own consumer does not count what it receives

    def start(self, parent: WorkController) -> None:
        parent.timer.call_repeatedly(1, self._turn)
        diagnosis = self._diagnosis(parent)

        def look() -> None:
            if problem := diagnosis.problem():
                logger.critical("watchdog: this worker ends itself: %s", problem)
                os._exit(EXIT_CODE)

        self._thread = Background("watchdog", parent.app.durable.config.watchdog_interval, look)

    def stop(self, parent: WorkController) -> None:
        self._thread.stop()  # a stopping worker may be slow, and whoever stops it has a grace for it

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
                return False  # nobody can take messages now

        def idle() -> bool:
            consumer = worker.consumer
            consumes = consumer.task_consumer is not None and bool(consumer.task_consumer.queues)
            return consumes and not state.reserved_requests and not consumer.held()

        def may_stand() -> bool:
            return (isinstance(worker.pool, solo.TaskPool) and bool(state.active_requests)) or not answers()

        return Diagnosis(
            durable.config, lambda: self._turned, may_stand, lambda: worker.consumer.received, idle, waiting
        )
