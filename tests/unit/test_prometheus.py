"""Rules, alerts and dashboards query metrics that exist, and the rules pass promtool of the image that runs them."""

import ast
import json
import os
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "prometheus"
CONFIG = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
ALERTMANAGER = yaml.safe_load((PROMETHEUS / "alertmanager.yml").read_text())
RULES = [
    rule
    for file in sorted((PROMETHEUS / "rules").glob("*.yml"))
    for group in yaml.safe_load(file.read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = [rule for rule in RULES if "alert" in rule]
LIMITS = [
    rule for rule in RULES if rule.get("record") == "queue:celery_queue_max_wait:seconds"
]  # are given with a severity
TARGET_LABELS = {"job", "instance"}

# Metrics of Prometheus itself, of prometheus-client's process collector and of redis_exporter.
OTHERS = {
    "up": set(),
    "ALERTS": {"alertname", "alertstate", "severity"},
    "process_start_time_seconds": set(),
    "redis_up": set(),
    "redis_memory_used_bytes": set(),
    "redis_memory_max_bytes": set(),
    "redis_connected_clients": set(),
}
METRIC_CLASSES = {"Counter", "Gauge", "Histogram", "CounterMetricFamily", "GaugeMetricFamily"}


@cache
def declared_metrics() -> dict[str, set[str]]:
    """Name → labels of each metric that the services' code declares."""
    metrics: dict[str, set[str]] = {}
    for file in chain((ROOT / "services").rglob("*.py"), (ROOT / "packages/celery-durable/src").rglob("*.py")):
        for call in ast.walk(ast.parse(file.read_text())):
            if not isinstance(call, ast.Call):
                continue
            kind = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            if kind not in METRIC_CLASSES or not (call.args and isinstance(call.args[0], ast.Constant)):
                continue  # such as collections.Counter(words)
            name = ast.literal_eval(call.args[0])
            named = [keyword.value for keyword in call.keywords if keyword.arg in ("labels", "labelnames")]
            given = [*call.args[2:], *named]
            lists = [ast.literal_eval(value) for value in given if isinstance(value, ast.List | ast.Tuple)]
            labels = set(lists[0]) if lists else set()
            if kind == "Histogram":
                metrics |= {f"{name}_bucket": labels | {"le"}, f"{name}_count": labels, f"{name}_sum": labels}
            else:
                metrics[name] = labels
    return metrics


@cache
def known_metrics() -> dict[str, set[str]]:
    """All metrics that may be queried: of the code, recorded ones, and those of others."""
    recorded: dict[str, set[str]] = {}
    for rule in RULES:
        if "record" in rule:
            by = promql_labels(promql.parse(rule["expr"])) if "by" in rule["expr"] else set()
            recorded[rule["record"]] = by | set(rule.get("labels", {}))
    return declared_metrics() | recorded | OTHERS


def nodes(expression: promql.Expr) -> list[promql.Expr]:
    """The expression and all its parts."""
    found: list[promql.Expr] = []
    promql.walk(expression, found.append)
    return found


def promql_labels(expression: promql.Expr) -> set[str]:
    """Labels that aggregations group by."""
    return {
        label
        for node in nodes(expression)
        if isinstance(node, promql.AggregateExpr) and node.modifier
        for label in node.modifier.labels
    }


def selectors(expression: promql.Expr) -> Iterator[promql.VectorSelector]:
    """Every series selector in the expression."""
    for node in nodes(expression):
        if isinstance(node, promql.VectorSelector):
            yield node


def queries() -> Iterator[tuple[str, str]]:
    """The place and query of each rule and each panel."""
    for rule in RULES:
        yield rule.get("alert") or rule["record"], rule["expr"]
    for file in sorted((ROOT / "grafana/dashboards").glob("*.json")):
        for panel in json.loads(file.read_text())["panels"]:
            for target in panel.get("targets", []):
                yield f"{file.stem}: {panel['title']} {target['refId']}", target["expr"]


@pytest.mark.parametrize(("where", "query"), [pytest.param(*query, id=query[0]) for query in queries()])
def test_queries_ask_for_metrics_and_labels_that_exist(where: str, query: str) -> None:
    known = known_metrics()
    expression = promql.parse(query)
    asked = list(selectors(expression))
    assert asked or query.startswith("vector("), f"{where}: no selector found in {query}"
    labels = set(TARGET_LABELS)
    for selector in asked:
        assert selector.name in known, f"{where} queries {selector.name}, which no program exports"
        labels |= known[selector.name]
        matched = {matcher.name for matcher in selector.matchers.matchers}
        assert matched <= known[selector.name] | TARGET_LABELS, f"{where}: {selector.name} has no such label"
    assert promql_labels(expression) <= labels, where


def test_metric_names_follow_prometheus_rules() -> None:
    """Base units; counters, and only they, end in _total."""
    assert declared_metrics(), "no metric found"
    for name in declared_metrics():
        assert re.fullmatch(r"[a-z][a-z0-9_]*", name)
        assert not re.search(r"_(ms|milliseconds|minutes|kb|mb|percent)(_|$)", name)


@pytest.mark.parametrize("alert", [pytest.param(alert, id=alert["alert"]) for alert in ALERTS])
def test_each_alert_has_severity_value_and_runbook(alert: dict[str, Any]) -> None:
    severities = {alert["labels"].get("severity")} - {None} or {rule["labels"]["severity"] for rule in LIMITS}
    assert severities <= {"critical", "warning"}
    assert "$value" in alert["annotations"]["summary"]
    assert len(alert["annotations"]["description"]) > 80


def seconds(duration: str) -> float:
    return promql.parse_duration(duration).total_seconds()


@pytest.mark.parametrize(
    "alert",
    [pytest.param(alert, id=alert["alert"]) for alert in ALERTS if alert["labels"].get("severity") != "warning"],
)
def test_an_outage_is_notified_within_30_seconds(alert: dict[str, Any]) -> None:
    scrape, evaluation = (CONFIG["global"][f"{what}_interval"] for what in ("scrape", "evaluation"))
    steps = [scrape, evaluation, alert.get("for", "0s"), ALERTMANAGER["route"]["group_wait"]]
    assert sum(map(seconds, steps)) <= 30


def test_each_rule_is_in_a_promtool_test() -> None:
    tests = "".join(file.read_text() for file in (PROMETHEUS / "tests").glob("*.yml"))
    names = {rule.get("alert") or rule["record"] for rule in RULES}
    assert {name for name in names if name not in tests} == set()


def test_each_service_that_reports_is_scraped() -> None:
    services = set(yaml.safe_load((ROOT / "compose.yaml").read_text())["services"])
    jobs = {job["job_name"] for job in CONFIG["scrape_configs"]}
    workers = {service for service in services if service.startswith("worker-")}  # one job for all
    # Redis is scraped through redis-exporter; client runs one-off commands.
    assert jobs == services - workers - {"redis", "redis-results", "client"} | {"worker"}


def test_each_scrape_is_bounded() -> None:
    """A job's own limit replaces the global one, and 0 is none."""
    for job in CONFIG["scrape_configs"]:
        for limit in ("sample_limit", "label_value_length_limit"):
            assert {**CONFIG["global"], **job}[limit] > 0, (job["job_name"], limit)


def promtool(*arguments: str) -> str:
    """Run promtool of PROMETHEUS_IMAGE over prometheus/; returns what it printed. Fails with that if it failed."""
    env_file = next(file for file in (ROOT / ".env", ROOT / ".env.example") if file.exists())
    in_file = re.findall(r"^PROMETHEUS_IMAGE=(.*)$", env_file.read_text(), re.MULTILINE)[-1]
    image = os.environ.get("PROMETHEUS_IMAGE", in_file)
    mount = [f"--volume={PROMETHEUS}:/etc/prometheus:ro", "--workdir=/etc/prometheus"]
    command = ["docker", "run", "--rm", "--network=none", *mount, "--entrypoint=promtool", image, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_promtool_accepts_the_configuration_and_the_rules() -> None:
    assert "SUCCESS" in promtool("check", "config", "prometheus.yml")


@pytest.mark.parametrize("file", sorted(file.name for file in (PROMETHEUS / "tests").glob("*.yml")))
def test_promtool_tests_of_the_rules(file: str) -> None:
    assert "SUCCESS" in promtool("test", "rules", f"tests/{file}")
