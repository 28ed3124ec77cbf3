"""More workers and fewer: noticed quickly, sharing the work, losing nothing."""

import time
from collections.abc import Iterator

import pytest

from stack import inside as run
from stack.inside import Inside
from stack.poll import poll_until
from stack.stack import Stack
from stack.web import Prometheus

pytestmark = pytest.mark.disruptive

NOTICED_WITHIN = 20  # s from the command's return
TASKS, SECONDS = 400, 0.25


@pytest.fixture(autouse=True)
def one_of_each_afterwards(stack: Stack) -> Iterator[None]:
    """Whatever happens, the next module finds one worker a queue."""
    yield
    stack.scale(worker_high=1, worker_low=1)


def seen(prometheus: Prometheus, job: str) -> int:
    """Workers that Prometheus scrapes, or tries to while they start."""
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
    assert left > 0, "the batch was over before the workers went: nothing was tested"
    poll_until(lambda: seen(prometheus, "worker-low") == 1, "one worker in Prometheus", NOTICED_WITHIN)
    poll_until(lambda: inside.call(run.states, ids) == ["SUCCESS"] * TASKS, f"all {TASKS} tasks done", 120)
    gone = poll_until(
        lambda: prometheus.query("celery_worker_heartbeat_timestamp_seconds"), "heartbeats in Prometheus", 20
    )
    assert len([labels for labels, _ in gone if labels["worker"].startswith("low@")]) == 1, "scaled down, not killed"
    assert time.time() - max(value for _, value in gone) < 20


def test_workers_of_the_high_queue_scale_apart(stack: Stack, prometheus: Prometheus) -> None:
    low = {container.id for container in stack.containers("worker-low")}
    stack.scale(worker_high=2)
    poll_until(lambda: seen(prometheus, "worker-high") == 2, "two high workers in Prometheus", NOTICED_WITHIN)
    stack.scale(worker_high=1)
    poll_until(lambda: seen(prometheus, "worker-high") == 1, "one high worker in Prometheus", NOTICED_WITHIN)
    assert {container.id for container in stack.containers("worker-low")} == low
