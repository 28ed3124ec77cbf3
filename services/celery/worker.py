"""What our workers add to Celery's: a name on their connections, a heartbeat file, a place in the registry, metrics."""

import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

from celery import bootsteps, signals
from celery.worker import WorkController, state
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from redis import RedisError

import timing
from delivery.checks import refuse_dangerous_settings
from delivery.watchdog import Watchdog
from metrics.exposition import registry, serve
from settings import CELERY, broker_client, settings

logger = logging.getLogger(__name__)

REGISTRY_KEY = "celery-workers"  # hash on the broker: node name -> JSON


def queue_names(worker: WorkController) -> list[str]:
    """Names of the queues that this worker consumes."""
    return sorted(worker.app.amqp.queues.consume_from)


@signals.celeryd_init.connect
def name_connections(sender: str, conf: Any, options: dict[str, Any], **_: Any) -> None:
    """Each worker's connections carry its name and queues, so that CLIENT LIST tells who consumes what.

    Redis drops the name with the connection: 0.3 s after a SIGKILL the worker is gone from the list.
    """
    queues = options.get("queues") or [queue.name for queue in CELERY["task_queues"]]  # type: ignore[attr-defined]
    names = queues.split(",") if isinstance(queues, str) else queues
    conf.broker_transport_options["client_name"] = f"celery-worker:{sender}:{','.join(sorted(names))}"
    if folder := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        os.makedirs(folder, exist_ok=True)


@signals.celeryd_init.connect
def check_settings(conf: Any, **_: Any) -> None:
    """Raises SystemExit before anything is taken from a queue."""
    refuse_dangerous_settings(conf)


class Heartbeat(bootsteps.StartStopStep):
    """Touches a file from the worker's event loop, so that a stuck loop shows; health checks need no broker for it."""

    requires = ("celery.worker.components:Timer",)

    def start(self, parent: WorkController) -> None:
        file = settings.run_dir / "heartbeat"
        parent.timer.call_repeatedly(timing.HEARTBEAT_INTERVAL, file.touch)


class Registration(bootsteps.StartStopStep):
    """Keeps this worker's entry in the registry fresh. Only a clean stop removes it: what is left was killed.

    In a thread, because the loop must not wait for a Redis that is away.
    """

    def __init__(self, parent: WorkController, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        self._stopped = threading.Event()

    def start(self, parent: WorkController) -> None:
        entry = {"queues": queue_names(parent), "concurrency": parent.concurrency, "started": time.time()}
        self._thread = threading.Thread(target=self._renew, args=(parent.hostname, entry), daemon=True)
        self._thread.start()

    def _renew(self, node: str, entry: dict[str, Any]) -> None:
        while True:
            try:
                broker_client().hset(REGISTRY_KEY, node, json.dumps({**entry, "heartbeat": time.time()}))
            except RedisError as error:
                logger.debug("registry of workers not renewed: %s", error)
            if self._stopped.wait(timing.REGISTRY_INTERVAL):
                return

    def stop(self, parent: WorkController) -> None:
        self._stopped.set()
        self._thread.join(timing.PUBLISH_SOCKET_TIMEOUT)  # a renewal under way would put the entry back
        try:
            broker_client().hdel(REGISTRY_KEY, parent.hostname)
        except RedisError as error:
            logger.warning("registry of workers: %s stays in it, Redis is away: %s", parent.hostname, error)

    terminate = stop


class PoolCollector(Collector):
    """Slots of the pool and what fills them, read from the worker's own state at each scrape."""

    def __init__(self, worker: WorkController) -> None:
        self._worker = worker

    def collect(self) -> Iterator[GaugeMetricFamily]:
        pool, busy = self._worker.pool, len(state.active_requests)
        yield GaugeMetricFamily("celery_worker_slots", "Tasks this worker can run at once.", value=pool.num_processes)
        yield GaugeMetricFamily("celery_worker_slots_busy", "Tasks this worker is running.", value=busy)
        yield GaugeMetricFamily(
            "celery_worker_prefetched_messages",
            "Messages taken from the queues and not running yet: waiting for a slot, or for their ETA.",
            value=max(0, len(state.reserved_requests) - busy),
        )


class Metrics(bootsteps.StartStopStep):
    """Serves the metrics of this worker and its pool children."""

    requires = ("celery.worker.components:Pool",)

    def start(self, parent: WorkController) -> None:
        served = registry()
        served.register(PoolCollector(parent))
        serve(settings.metrics_port, served)


STEPS = (Heartbeat, Registration, Metrics, Watchdog)
