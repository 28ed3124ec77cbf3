"""A worker that hangs or has gone deaf ends itself: compose restarts what has ended, not what is merely unhealthy.

Hung: its event loop does not turn (a reply that never comes over a connection whose other end has vanished). Deaf: the
loop turns, messages wait, it is idle, and takes none (a leaked prefetch slot does that). Its own time is counted in
turns of the watching thread, so that a frozen or starved process is not taken for a hung one when it goes on.
"""

import logging
import os
import threading
from collections.abc import Callable
from typing import Any

from celery import bootsteps
from celery.worker import WorkController, state
from redis import RedisError

import timing
from settings import broker_client, priority_lists

logger = logging.getLogger(__name__)

EXIT_CODE = 70  # EX_SOFTWARE (sysexits.h)


class Vigil:
    """What is known of a worker from one look to the next; `look` says what is wrong with it, or nothing."""

    def __init__(
        self,
        turns: Callable[[], int],
        received: Callable[[], int],
        idle: Callable[[], bool],
        waiting: Callable[[], bool],
    ) -> None:
        self._turns, self._received, self._idle, self._waiting = turns, received, idle, waiting
        self._seen_turns, self._still = -1, 0.0
        self._seen_received, self._unheard = -1, 0.0

    def look(self) -> str:
        """Called every timing.WATCHDOG_INTERVAL seconds."""
        turns, received = self._turns(), self._received()
        self._still = 0.0 if turns != self._seen_turns else self._still + timing.WATCHDOG_INTERVAL
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

    requires = ("celery.worker.components:Timer",)

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
            consumes = worker.consumer.task_consumer is not None and bool(worker.consumer.task_consumer.queues)
            return consumes and not state.reserved_requests and not state.scheduled_requests

        vigil = Vigil(lambda: self._turned, lambda: worker.consumer.received, idle, waiting)
        while not self._stopped.wait(timing.WATCHDOG_INTERVAL):
            if wrong := vigil.look():
                logger.critical("watchdog: this worker ends itself: %s", wrong)
                os._exit(EXIT_CODE)
