"""The producer's traffic: patterns beside it, back-pressure, Redis down."""

import re
import subprocess

import pytest

from stack import inside as run
from stack.inside import Inside
from stack.poll import poll_until
from stack.stack import Stack
from stack.web import Prometheus


def load(stack: Stack, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `make load`: a second producer, for a limited time."""
    options = [part for name, value in environment.items() for part in ("--env", f"{name}={value}")]
    command = [*stack.compose_command, "run", "--rm", "--no-deps", "--use-aliases", "--no-TTY", *options, "producer"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("pattern", ["steady", "bursts", "failures"])
def test_a_pattern_runs_beside_the_producer_and_logs_what_it_sent(pattern: str, stack: Stack) -> None:
    done = load(stack, TRAFFIC=pattern, FOR="4s")
    assert done.returncode == 0, done.stderr
    summary = re.search(r"published (\d+), unpublished (\d+)", done.stdout)
    assert summary, done.stdout + done.stderr
    assert int(summary[1]) > 0
    assert int(summary[2]) == 0


def test_idle_sends_nothing(stack: Stack) -> None:
    assert "published 0, unpublished 0" in load(stack, TRAFFIC="idle", FOR="2s").stdout


@pytest.mark.parametrize(
    ("environment", "named"),
    [({"TRAFFIC": "stedy"}, "TRAFFIC: no 'stedy'"), ({"FOR": "soon"}, "FOR: "), ({"SEED": "x"}, "SEED: ")],
)
def test_a_wrong_setting_is_an_error_that_names_it_and_its_values(
    environment: dict[str, str], named: str, stack: Stack
) -> None:
    done = load(stack, **environment)
    assert done.returncode == 2
    assert named in done.stderr
    if "TRAFFIC" in environment:
        for choice in ("steady", "flood", "bursts", "failures", "idle"):
            assert choice in done.stderr


@pytest.mark.disruptive
def test_it_slows_down_when_a_queue_is_too_deep_and_logs_it(stack: Stack, inside: Inside) -> None:
    limit = 300
    with stack.stopped("worker-low"):
        done = load(stack, TRAFFIC="flood", FOR="10s", MAX_QUEUE_DEPTH=str(limit))
        depth = sum(inside.call(run.waiting, "low").values())
    assert f"more than {limit}: sending to it is paused" in done.stderr
    assert limit < depth < 1000, "without back-pressure 2000: 10 s of 200 a second"


@pytest.mark.disruptive
def test_it_counts_what_it_cannot_publish_while_redis_is_down_and_continues_afterwards(
    stack: Stack, prometheus: Prometheus
) -> None:
    unpublished = 'sum(celery_producer_unpublished_total{job="producer"})'
    published = 'sum(celery_published_total{job="producer"})'
    before = prometheus.value(unpublished)
    with stack.stopped("redis"):
        poll_until(lambda: prometheus.value(unpublished) > before, "messages counted as unpublished", 60)
    poll_until(
        lambda: "Redis accepts messages again" in str(stack.compose.logs("producer", tail="50")),
        "the producer's word",
        30,
    )
    sent = prometheus.value(published)
    poll_until(lambda: prometheus.value(published) > sent, "messages published again", 30)
    stack.wait_healthy()
