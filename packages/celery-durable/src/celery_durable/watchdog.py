"""A hung or deaf worker exits: supervisors restart a process that has exited, not one that is only unhealthy.

Hung: its event loop is blocked (for example waiting for a reply on a connection whose peer has disappeared). Deaf: the
loop runs and the worker is idle, but it takes none of the waiting messages (for example after a leaked prefetch slot).
Time is counted in iterations of the watchdog thread, so that a process that was frozen or starved of CPU does not count
as hung. A blocked loop is accepted while one of the two Redis does not answer, and while the solo pool runs a task.

It exits also when a task of the solo or threads pool runs for longer than its time limit: Celery ends only tasks of the
prefork pool, and a task that hangs would keep its message and its slot for ever.
"""

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from threading import Timer
from typing import Any

from celery import bootsteps
from celery.concurrency import solo, thread
from celery.worker import WorkController, state
from redis import RedisError

from celery_durable.background import Background
from celery_durable.config import Config
from celery_durable.logs import get_logger

logger = get_logger(__name__)

EXIT_CODE = 70  # EX_SOFTWARE (sysexits.h)
LAST_WORDS = 10  # s in which the end of a task is recorded


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


class TimeLimits:
    """Of running tasks that nothing else ends."""

    def __init__(self, interval: float, running: Callable[[], Iterable[Any]]) -> None:
        self._interval, self._running = interval, running
        self._ran: dict[Any, float] = {}  # s, by request

    def exceeded(self) -> list[tuple[Any, float]]:
        """Called every Config.watchdog_interval seconds: the requests that have run for longer than their limit (s)."""
        self._ran = {request: self._ran.get(request, 0.0) + self._interval for request in self._running()}
        limits = ((request, _limit_of(request)) for request in self._ran)
        return [(request, limit) for request, limit in limits if limit and self._ran[request] > limit + self._interval]


def _limit_of(request: Any) -> float | None:
    limit, _ = request.time_limits
    return limit or request.task.time_limit  # type: ignore[no-any-return]


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
        limits = TimeLimits(parent.app.durable.config.watchdog_interval, lambda: _running(parent))

        def look() -> None:
            if overrun := limits.exceeded():
                _exit_without(overrun)
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


def _running(worker: WorkController) -> list[Any]:
    """The requests whose time limits are the watchdog's business."""
    if not isinstance(worker.pool, solo.TaskPool | thread.TaskPool):
        return []
    while True:
        with suppress(RuntimeError):  # another thread has added one meanwhile
            return [request for request in state.active_requests if request.time_start]


def _exit_without(overrun: list[tuple[Any, float]]) -> None:
    """Record the ends of these tasks as a prefork worker does, and exit. Messages of other tasks are redelivered."""
    last = Timer(LAST_WORDS, os._exit, (EXIT_CODE,))
    last.daemon = True
    last.start()
    try:
        for request, limit in overrun:
            task = f"{request.name}[{request.id}]"
            logger.critical("watchdog: this worker exits: %s runs for longer than its time limit, %g s", task, limit)
            try:
                request.end_at_time_limit(limit)
            except Exception:
                logger.exception("watchdog: the end of %s is not recorded; its message is redelivered", task)
    finally:
        os._exit(EXIT_CODE)
