"""More workers and fewer: seen quickly, they share the tasks, and no task is lost."""

import time
from collections.abc import Iterator

import pytest

from stack import inside as run
from stack.inside import Inside
from stack.poll import poll_until
from stack.stack import Stack
from stack.web import Prometheus

pytestmark = pytest.mark.disruptive

NOTICED_WITHIN = 20  # s after the command's return
TASKS, SECONDS = 800, 0.25  # four workers need 25 s for it: longer than it takes to see them and to stop three


@pytest.fixture(autouse=True)
def one_of_each_afterwards(stack: Stack) -> Iterator[None]:
    """Leave one worker per queue for the next module."""
    yield
    stack.scale(worker_high=1, worker_low=1)


def seen(prometheus: Prometheus, job: str) -> int:
    """Workers that Prometheus scrapes, or tries to scrape while they start."""
    return len(prometheus.query(f'up{{job="{job}"}}'))


def test_workers_scaled_from_1_to_4_share_the_work_and_back_to_1_lose_nothing(
    stack: Stack, inside: Inside, prometheus: Prometheus
) -> None:
    poll_until(lambda: seen(prometheus, "worker-low") == 1, "one worker-low in Prometheus", 30)
    ids = inside.call(run.publish, "tasks.basic.sleep", [[SECONDS]] * TASKS)

    stack.scale(worker_low=4)
    poll_until(lambda: seen(prometheus, "worker-low") == 4, "four workers in Prometheus", NOTICED_WITHIN)
    stack.wait_healthy("worker-low")
    poll_until(lambda: prometheus.value('sum(up{job="worker-low"})') == 4, "four workers up", NOTICED_WITHIN)
    poll_until(
        lambda: prometheus.value('celery_queue_consumers{queue="low"}') == 4, "four consumers of low", NOTICED_WITHIN
    )

    def who_worked() -> set[str]:
        return {r["worker"] for r in inside.call(run.results, ids) if r["state"] in ("STARTED", "SUCCESS")}

    poll_until(lambda: len(who_worked()) == 4, "four workers with tasks of one batch", 30)

    stack.scale(worker_low=1)  # in the middle of the batch
    left = TASKS - inside.call(run.states, ids).count("SUCCESS")
    assert left > 0, "the batch was done before the workers stopped: nothing was tested"
    poll_until(lambda: seen(prometheus, "worker-low") == 1, "one worker in Prometheus", NOTICED_WITHIN)
    poll_until(lambda: inside.call(run.states, ids) == ["SUCCESS"] * TASKS, f"all {TASKS} tasks done", 180)

    def heartbeats() -> dict[str, float]:
        found = prometheus.query("celery_worker_heartbeat_timestamp_seconds")
        return {labels["worker"]: value for labels, value in found if labels["worker"].startswith("low@")}

    poll_until(lambda: len(heartbeats()) == 1, "one low worker registered: scaled down, not killed", 20)
    assert time.time() - max(heartbeats().values()) < 20


def test_workers_of_the_high_queue_scale_apart(stack: Stack, prometheus: Prometheus) -> None:
    low = {container.id for container in stack.containers("worker-low")}
    stack.scale(worker_high=2)
    poll_until(lambda: seen(prometheus, "worker-high") == 2, "two high workers in Prometheus", NOTICED_WITHIN)
    stack.scale(worker_high=1)
    poll_until(lambda: seen(prometheus, "worker-high") == 1, "one high worker in Prometheus", NOTICED_WITHIN)
    assert {container.id for container in stack.containers("worker-low")} == low


def test_a_killed_worker_stays_registered_and_one_scaled_down_does_not(stack: Stack, inside: Inside) -> None:
    def registered() -> set[str]:
        return {
            str(node)
            for node in inside.call(run.broker, "HKEYS", "celery-durable:workers")
            if str(node).startswith("low@")
        }

    stack.scale(worker_low=3)
    poll_until(lambda: len(registered()) == 3, "three low workers registered", 60)
    *_, stopped, killed = stack.containers("worker-low")
    nodes = {container.id: f"low@{container.config.hostname}" for container in (stopped, killed)}
    killed.kill()
    stopped.stop(time=20)
    poll_until(lambda: nodes[stopped.id] not in registered(), "the stopped worker gone from the registry", 20)
    assert nodes[killed.id] in registered()
    inside.call(run.broker, "HDEL", "celery-durable:workers", nodes[killed.id])
    stack.scale(worker_low=1)
    stack.wait_healthy("worker-low")
