"""What workers, beat and publishers report of themselves to Prometheus. Needs prometheus-client (the extra `metrics`).

The library's signals and Celery's are counted; nothing that delivers messages knows of it.
"""

import os
from typing import Any

# prometheus-client writes a file for each process into this folder as soon as a metric is made.
if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
    os.makedirs(os.environ["PROMETHEUS_MULTIPROC_DIR"], exist_ok=True)

from celery_durable.metrics import beat, delivery, tasks, worker


def install(app: Any) -> None:
    """Count what the app does, and serve it where its Config names a port."""
    tasks.connect()
    delivery.connect()
    beat.connect()
    app.steps["worker"].add(worker.Metrics)
