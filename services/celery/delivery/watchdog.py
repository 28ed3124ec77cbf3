"""A worker that hangs or has gone deaf ends itself: compose restarts what has ended, not what is merely unhealthy.

Hung: its event loop does not turn (a reply that never comes over a connection whose other end has vanished). Deaf: the
loop turns, messages wait, it is idle, and takes none (a leaked prefetch slot does that). Its own time is counted in
turns of the watching thread, so that a frozen or starved process is not taken for a hung one when it goes on. While one
of the two Redis does not answer, a loop that stands still waits for it; the solo pool runs its task in the loop.
"""

import logging
import os
import threading
from collections.abc import Callable
from typing import Any

from celery import bootsteps
from celery.concurrency import solo
from celery.worker import WorkController, state
from redis import RedisError

import timing
from settings import broker_client, priority_lists, results_client

logger = logging.getLogger(__name__)

EXIT_CODE = 70  # EX_SOFTWARE (sysexits.h)


class Vigil:
    """What is known of a worker from one look to the next; `look` says what is wrong with it, or nothing."""

    def __init__(
        self,
        turns: Callable[[], int],
        may_stand: Callable[[], bool],
        received: Callable[[], int],
        idle: Callable[[], bool],
        waiting: Callable[[], bool],
    ) -> None:
        self._turns, self._may_stand = turns, may_stand
        self._received, self._idle, self._waiting = received, idle, waiting
        self._seen_turns, self._still = -1, 0.0
        self._seen_received, self._unheard = -1, 0.0

    def look(self) -> str:
        """Called every timing.WATCHDOG_INTERVAL seconds."""
        turns, received = self._turns(), self._received()
        stands = turns == self._seen_turns and not self._may_stand()
        self._still = self._still + timing.WATCHDOG_INTERVAL if stands else 0.0
        self._seen_turns = turns
        if self._still >= timing.HUNG_AFTER:
            return f"its event loop has not turned for {self._still:g} s"
        if received == self._seen_received and self._idle() and self._waiting():
            self._unheard += timing.WATCHDOG_INTERVAL
        else:
            self._unheard = 0.0
        self._seen_received = received
        if self._unheard >= timing.DEAF_AFTER:
            return f"messages have waited for {self._unheard:g} s while it was idle and took none"
        return ""


class Watchdog(bootsteps.StartStopStep):
    """Watches from a thread, for as long as the worker runs."""

    # After the pool, and so stopped before it: a pool that waits for its last tasks holds the loop.
    requires = ("celery.worker.components:Timer", "celery.worker.components:Pool")

    def __init__(self, parent: WorkController, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        self._turned = 0
        self._stopped = threading.Event()

    def start(self, parent: WorkController) -> None:
        parent.timer.call_repeatedly(1, self._turn)
        threading.Thread(target=self._watch, args=(parent,), daemon=True).start()

    def stop(self, parent: WorkController) -> None:
        self._stopped.set()  # a stopping worker may be slow, and compose has a grace for it

    terminate = stop

    def _turn(self) -> None:
        self._turned += 1

    def _watch(self, worker: WorkController) -> None:
        def waiting() -> bool:
            lists = [name for queue in worker.app.amqp.queues.consume_from for name in priority_lists(queue)]
            try:
                return bool(broker_client().exists(*lists))
            except RedisError:
                return False  # nobody can take messages now

        def idle() -> bool:
            consumer = worker.consumer
            consumes = consumer.task_consumer is not None and bool(consumer.task_consumer.queues)
            limited = any(
                bucket and bucket.contents for bucket in list(consumer.task_buckets.values())
            )  # by their rate
            return consumes and not limited and not state.reserved_requests and not state.scheduled_requests

        def may_stand() -> bool:
            return (isinstance(worker.pool, solo.TaskPool) and bool(state.active_requests)) or not _redis_answers()

        vigil = Vigil(lambda: self._turned, may_stand, lambda: worker.consumer.received, idle, waiting)
        while not self._stopped.wait(timing.WATCHDOG_INTERVAL):
            if wrong := vigil.look():
                logger.critical("watchdog: this worker ends itself: %s", wrong)
                os._exit(EXIT_CODE)


def _redis_answers() -> bool:
    try:
        return bool(broker_client().ping() and results_client().ping())
    except RedisError:
        return False
