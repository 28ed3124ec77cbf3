"""Prometheus metrics of workers, beat and publishers. Needs prometheus-client (the extra `metrics`).

They are counted by receivers of the library's and Celery's signals; the delivery code does not depend on them.
"""

import os
from typing import Any

# prometheus-client writes a file for each process into this folder as soon as a metric is created.
if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
    os.makedirs(os.environ["PROMETHEUS_MULTIPROC_DIR"], exist_ok=True)

from celery_durable.metrics import beat, delivery, tasks, worker


def install(app: Any) -> None:
    """Count what the app does, and serve the metrics if Config.metrics_port is set."""
    tasks.connect()
    delivery.connect()
    beat.connect()
    app.steps["worker"].add(worker.Metrics)
