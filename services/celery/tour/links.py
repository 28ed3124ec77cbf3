"""Links to web pages, shown in the terminal."""

import json
import os
from urllib.parse import quote

from tour.evidence import Seen
from tour.waiting import UnavailableError

DATASOURCE = "prometheus"  # its uid (grafana/provisioning/datasources)


def explore(task: str) -> Seen[str]:
    """The address of Grafana's Explore with one task's outcomes and run time.

    `make tour` sets GRAFANA_ADDRESS. Raises UnavailableError if Grafana is not running.
    """
    grafana = os.environ.get("GRAFANA_ADDRESS")
    if not grafana:
        raise UnavailableError("Grafana is not running: `grafana` must be in COMPOSE_PROFILES (.env), then make up")
    outcomes = f'sum by (outcome) (rate(celery_tasks_total{{task="{task}"}}[1m]))'
    run_time = f'histogram_quantile(0.95, sum by (le) (rate(celery_task_runtime_seconds_bucket{{task="{task}"}}[1m])))'
    queries = [
        {"refId": ref, "expr": query, "datasource": {"type": "prometheus", "uid": DATASOURCE}}
        for ref, query in (("A", outcomes), ("B", run_time))
    ]
    pane = {"datasource": DATASOURCE, "queries": queries, "range": {"from": "now-15m", "to": "now"}}
    return Seen(
        f"http://{grafana}/explore?schemaVersion=1&panes={quote(json.dumps({'task': pane}))}", "Grafana's address"
    )
