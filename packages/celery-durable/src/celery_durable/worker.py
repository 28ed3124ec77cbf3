"""Additions to Celery's worker: checks at start, a heartbeat, a registration, persistent revocations."""

import json
import time
from heapq import heapify
from typing import Any

from billiard.common import REMAP_SIGTERM
from celery import bootsteps
from celery.concurrency import prefork, solo
from celery.worker import WorkController, control
from redis import RedisError

from celery_durable.atomic.delays import TICK, move_due
from celery_durable.atomic.support import missing_for_worker
from celery_durable.background import Background
from celery_durable.checks import refuse_dangerous_settings
from celery_durable.logs import get_logger
from celery_durable.watchdog import Watchdog

logger = get_logger(__name__)

TIMERS_INTERVAL = 10  # s


def queue_names(worker: WorkController) -> list[str]:
    """Names of the queues that a worker consumes."""
    return sorted(queue.name for queue in worker.app.amqp.queues.consume_from.values())


class Start(bootsteps.Step):
    """Checks the settings, and names the worker's connections, before the first message is taken.

    In CLIENT LIST the names show which worker consumes which queues. Redis removes them with the connection: 0.3 s
    after a SIGKILL the worker is no longer in the list.
    """

    def __init__(self, parent: WorkController, **kwargs: Any) -> None:
        durable = parent.app.durable
        if durable.atomic and (missing := missing_for_worker(parent.pool_cls, durable)):
            durable.fall_back(missing)
        refuse_dangerous_settings(parent.app)
        if not durable.atomic and issubclass(parent.pool_cls, solo.TaskPool):
            logger.warning(
                "a task that takes longer than Config.visibility_timeout (%g s) runs twice: with the stock transport a "
                "solo worker cannot renew its message meanwhile",
                durable.config.visibility_timeout,
            )
        if REMAP_SIGTERM != "SIGQUIT":
            logger.warning(
                "REMAP_SIGTERM is not SIGQUIT in the environment: on SIGTERM this worker ignores Config.soft_shutdown "
                "and waits for running tasks up to their time limit"
            )
        names = ",".join(queue_names(parent)).replace(" ", "_")  # Redis allows no spaces in a client name
        durable.worker_name = f"celery-worker:{parent.hostname}:{names}"
        super().__init__(parent, **kwargs)


class Heartbeat(bootsteps.StartStopStep):
    """Touches a file from the worker's event loop: a health check detects a blocked loop without using the broker."""

    requires = ("celery.worker.components:Timer",)

    def include_if(self, parent: WorkController) -> bool:
        return parent.app.durable.config.heartbeat_file is not None

    def start(self, parent: WorkController) -> None:
        config = parent.app.durable.config
        parent.timer.call_repeatedly(config.heartbeat_interval, config.heartbeat_file.touch)


class Timers(bootsteps.StartStopStep):
    """Removes timers that were cancelled. Celery's prefork pool has one for the time limit of each task, and keeps it
    until the limit would be over: 0.6 kB a task, 570 MB after a million tasks and a limit of an hour
    (celery/celery#5200)."""

    requires = ("celery.worker.components:Timer",)

    def include_if(self, parent: WorkController) -> bool:
        # Only the event loop adds timers: with other pools another thread might do so while they are sorted out.
        return parent.use_eventloop and issubclass(parent.pool_cls, prefork.TaskPool)

    def start(self, parent: WorkController) -> None:
        parent.timer.call_repeatedly(TIMERS_INTERVAL, remove_cancelled, (parent.timer,))


def remove_cancelled(timer: Any) -> None:
    """Of kombu's timer, whose iterator needs the same list."""
    kept = [each for each in timer._queue if not each.entry.canceled]
    heapify(kept)
    timer._queue[:] = kept


class Registration(bootsteps.StartStopStep):
    """Renews this worker's registration. Only a clean stop removes it, so a stale one shows a killed worker.

    <key_prefix>workers      hash in the broker: node name -> JSON {"queues", "concurrency", "started", "heartbeat"}

    In a thread, because the event loop must not wait for an unavailable Redis.
    """

    def start(self, parent: WorkController) -> None:
        durable = parent.app.durable
        entry = {"queues": queue_names(parent), "concurrency": parent.concurrency, "started": time.time()}

        def renew() -> None:
            try:
                renewed = {**entry, "heartbeat": time.time()}
                durable.broker.hset(durable.broker_key("workers"), parent.hostname, json.dumps(renewed))
            except RedisError as error:
                logger.debug("registration not renewed: %s", error)

        self._thread = Background("registration", durable.config.registration_interval, renew)

    def stop(self, parent: WorkController) -> None:
        durable = parent.app.durable
        self._thread.stop(durable.config.publish_socket_timeout)  # a running renewal would write the entry again
        try:
            durable.broker.hdel(durable.broker_key("workers"), parent.hostname)
        except RedisError as error:
            logger.warning("registration of %s not removed: %s", parent.hostname, error)

    terminate = stop


class Due(bootsteps.StartStopStep):
    """Moves delayed messages that are due, in a worker that falls back from the atomic transport: they wait in Redis
    since before, or from publishers that do not fall back."""

    def include_if(self, parent: WorkController) -> bool:
        durable = parent.app.durable
        return durable.config.transport == "atomic" and not durable.atomic

    def start(self, parent: WorkController) -> None:
        durable = parent.app.durable
        queues = queue_names(parent)

        def move() -> float | None:
            try:
                return move_due(durable.broker, durable.broker_key, queues, parent.hostname, lambda: True)
            except RedisError as error:
                logger.warning("delayed messages not moved: %s; tried again in %g s", error, TICK)
                return None

        self._thread = Background("due", TICK, move)

    def stop(self, parent: WorkController) -> None:
        self._thread.stop()

    terminate = stop


class Revocations(bootsteps.Step):
    """Stores the revocations that this worker receives: a sender without the library does not store them."""

    def __init__(self, parent: WorkController, **kwargs: Any) -> None:
        durable = parent.app.durable
        for command in ("revoke", "revoke_by_stamped_headers"):
            control.Panel.data[command] = _remembering(durable, command, control.Panel.data[command])
        super().__init__(parent, **kwargs)


def _remembering(durable: Any, command: str, run: Any) -> Any:
    def handler(state: Any, *args: Any, **kwargs: Any) -> Any:
        first = "task_id" if command == "revoke" else "headers"
        remembered: dict[str, float] = {}
        try:
            remembered = durable.revocations.remember(command, {first: args[0] if args else kwargs.get(first)})
        except RedisError as error:
            logger.warning("%s not stored, it is lost when this worker stops: %s", command, error)
        reply = run(state, *args, **kwargs)
        durable.revocations.know(remembered)  # Celery forgets it after `revoked_for`
        return reply

    return handler


STEPS = (Start, Heartbeat, Timers, Registration, Due, Revocations, Watchdog)
