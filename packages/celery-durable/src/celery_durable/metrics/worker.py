"""Slots of a worker's pool, and the HTTP server of its metrics."""

from collections.abc import Iterator
from typing import Any

from celery import bootsteps
from celery.worker import WorkController, state
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from celery_durable.metrics.delivery import StoreCollector
from celery_durable.metrics.exposition import registry, serve


class PoolCollector(Collector):
    """Slots of the pool, and busy ones, read from the worker's own state at each scrape."""

    def __init__(self, worker: WorkController) -> None:
        self._worker = worker

    def collect(self) -> Iterator[GaugeMetricFamily]:
        pool, busy = self._worker.pool, len(state.active_requests)
        held: dict[str, Any] = getattr(self._worker.consumer, "held", dict)()
        yield GaugeMetricFamily("celery_worker_slots", "Tasks this worker can run at once.", value=pool.num_processes)
        yield GaugeMetricFamily("celery_worker_slots_busy", "Tasks this worker is running.", value=busy)
        yield GaugeMetricFamily(
            "celery_worker_prefetched_messages",
            "Messages taken from the queues and not running yet: waiting for a slot, their ETA or their rate limit.",
            value=max(0, len(held) - busy),
        )


class Metrics(bootsteps.StartStopStep):
    """Serves the metrics of this worker and its pool children."""

    requires = ("celery.worker.components:Pool",)

    def include_if(self, parent: WorkController) -> bool:
        return parent.app.durable.config.metrics_port is not None

    def __init__(self, parent: WorkController, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        parent.app.durable.queue_of(None)  # reads the queues before a callback of a message can add one

    def start(self, parent: WorkController) -> None:
        durable: Any = parent.app.durable
        served = registry()
        served.register(PoolCollector(parent))
        served.register(StoreCollector(durable))
        serve(durable.config.metrics_port, served)
