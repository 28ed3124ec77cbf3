"""Flower, Prometheus' rules and the dashboards work and show data."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from queues import QUEUES
from stack import web
from stack.poll import poll_until
from stack.stack import ROOT, Stack
from stack.web import Prometheus

pytestmark = pytest.mark.main

DASHBOARDS = sorted((ROOT / "grafana/dashboards").glob("*.json"))
# The values of Grafana's variables; those of a dashboard select all.
VARIABLES = {"__rate_interval": "30s", "__interval": "15s", "__range": "5m", "__range_s": "300"}


def panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Panels of a dashboard, those inside rows too."""
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels", [])


def queries() -> list[Any]:
    """The query of every panel of every dashboard, with its variables replaced."""
    found = []
    for file in DASHBOARDS:
        for panel in panels(json.loads(file.read_text())):
            for target in panel.get("targets", []):
                expression = re.sub(
                    r"\$\{?(\w+)(:\w+)?\}?", lambda match: VARIABLES.get(match[1], ".*"), target["expr"]
                )
                found.append(pytest.param(expression, id=f"{file.stem}: {panel['title']} {target['refId']}"))
    return found


def test_there_is_a_dashboard_with_panels() -> None:
    assert [Path(file).name for file in DASHBOARDS]
    assert queries()


@pytest.mark.parametrize("expression", queries())
def test_the_panels_query_returns_data_under_steady(expression: str, prometheus: Prometheus) -> None:
    poll_until(lambda: prometheus.query(expression), f"data for {expression}", 60, interval=1)


def test_prometheus_evaluates_every_rule_without_an_error(prometheus: Prometheus) -> None:
    def evaluated() -> list[dict[str, Any]]:
        rules = [rule for group in prometheus.api("rules")["groups"] for rule in group["rules"]]
        return rules if rules and all(rule["health"] == "ok" for rule in rules) else []

    rules = poll_until(evaluated, "every rule evaluated with health ok", 30)
    files = "".join(file.read_text() for file in (ROOT / "prometheus/rules").glob("*.yml"))
    assert {rule["name"] for rule in rules} == set(re.findall(r"(?:alert|record): *(\S+)", files))


def test_no_alert_fires_under_steady(prometheus: Prometheus) -> None:
    # Pending ones count: an expression that is always true fires only after its `for`.
    poll_until(lambda: not prometheus.query("ALERTS"), "no alert firing or about to", 120)


def test_prometheus_has_found_alertmanager(prometheus: Prometheus) -> None:
    assert len(prometheus.api("alertmanagers")["activeAlertmanagers"]) == 1


def test_flower_lists_workers_and_tasks(stack: Stack) -> None:
    if "flower" not in stack.enabled:
        pytest.skip("flower: the profile events is not in COMPOSE_PROFILES (.env)")
    flower = stack.url("flower")

    def workers() -> list[str]:
        found = web.get(f"{flower}/api/workers?refresh=1", web.login("flower"))
        return sorted(name.split("@")[0] for name in found)

    poll_until(lambda: workers() == sorted(queue.name for queue in QUEUES), "Flower to list a worker of each queue", 30)

    def tasks() -> set[str]:
        found = web.get(f"{flower}/api/tasks?limit=200&state=SUCCESS", web.login("flower"))
        return {task["name"] for task in found.values()}

    regular = {"tasks.maintenance.canary", "tasks.maintenance.report"}
    poll_until(lambda: regular <= tasks(), "Flower to list what beat sends", 90)


def test_flower_shows_the_broker_and_the_length_of_its_queues(stack: Stack) -> None:
    if "flower" not in stack.enabled:
        pytest.skip("flower: the profile events is not in COMPOSE_PROFILES (.env)")
    flower = stack.url("flower")
    queues = web.get(f"{flower}/api/queues/length", web.login("flower"))["active_queues"]
    assert {queue["name"] for queue in queues} == {queue.name for queue in QUEUES}
    assert all(isinstance(queue["messages"], int) for queue in queues)
    assert web.status(f"{flower}/broker", web.login("flower")) == 200


@pytest.fixture
def grafana(stack: Stack) -> str:
    """Address of Grafana."""
    if "grafana" not in stack.enabled:
        pytest.skip(
            "grafana: its profile is not in COMPOSE_PROFILES (.env); its image is not available, or it was left out"
        )
    return stack.url("grafana")


def test_grafana_lists_every_dashboard(grafana: str) -> None:
    listed = {entry["title"] for entry in web.get(f"{grafana}/api/search?type=dash-db", web.login("grafana"))}
    assert listed == {json.loads(file.read_text())["title"] for file in DASHBOARDS}


def test_grafanas_log_has_no_provisioning_error(grafana: str, stack: Stack) -> None:
    lines = str(stack.compose.logs("grafana")).splitlines()
    provisioning = [line for line in lines if "logger=provisioning" in line]
    assert provisioning, "no line about provisioning"
    assert [line for line in provisioning if "level=error" in line] == []


@pytest.mark.parametrize("expression", queries())
def test_the_panels_query_succeeds_through_grafana(expression: str, grafana: str) -> None:
    source = web.get(f"{grafana}/api/datasources", web.login("grafana"))[0]["uid"]
    query = {"refId": "A", "expr": expression, "instant": True, "datasource": {"uid": source}}
    body = json.dumps({"from": "now-5m", "to": "now", "queries": [query]}).encode()
    answer = poll_until(
        lambda: web.get(f"{grafana}/api/ds/query", web.login("grafana"), body)["results"]["A"],
        f"an answer to {expression}",
        30,
    )
    assert answer["status"] == 200, answer
    assert answer["frames"], "no data"
