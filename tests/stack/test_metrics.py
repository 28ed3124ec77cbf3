"""Metrics: every target is scraped, every promised metric exists with a sane value, and the counts are correct."""

import pytest

from stack import inside as run
from stack.inside import Inside
from stack.poll import poll_until
from stack.services import Service
from stack.stack import Stack
from stack.web import Prometheus

SCRAPED = 30  # s until an event is in Prometheus: two scrapes and an evaluation, on a busy machine
RECENT = 90  # s


@pytest.mark.main
def test_prometheus_scrapes_it(service: Service, stack: Stack, prometheus: Prometheus) -> None:
    if not service.scraped:
        pytest.skip(f"{service.name} has no metrics of its own")

    def up() -> bool:
        targets = prometheus.targets(service.name)
        return bool(targets) and all(target["health"] == "up" for target in targets)

    poll_until(up, f"every target of job {service.name} up: {prometheus.targets(service.name)}", SCRAPED)


@pytest.mark.main
def test_no_target_is_down(prometheus: Prometheus) -> None:
    poll_until(lambda: prometheus.query("up") and not prometheus.query("up == 0"), "no target down", SCRAPED)


# Under `steady`: an expression that has a value if the metric exists, with its labels and a sane value.
PRESENT = [
    'celery_tasks_total{job="worker-low",task="tasks.basic.add",queue="low",outcome="success"} > 0',
    'celery_tasks_total{job="worker-high",task="tasks.search.search",queue="high",outcome="success"} > 0',
    'celery_tasks_total{task="tasks.basic.flaky",queue="low",outcome="retry"} > 0',
    'celery_tasks_total{task="tasks.basic.failing",queue="low",outcome="failure"} > 0',
    'celery_task_runtime_seconds_count{task="tasks.basic.sleep",queue="low"} > 0',
    'celery_task_runtime_seconds_sum{task="tasks.basic.sleep"} / celery_task_runtime_seconds_count > 0.05 < 0.6',
    'celery_task_queue_wait_seconds_count{task="tasks.search.search",queue="high"} > 0',
    'celery_task_queue_wait_seconds_sum{task="tasks.search.search"} / celery_task_queue_wait_seconds_count < 5',
    'celery_worker_slots{job="worker-high"} == 2',
    'celery_worker_slots{job="worker-low"} == 2',
    "celery_worker_slots_busy >= 0 <= 2",
    "celery_worker_prefetched_messages >= 0 < 100",
    'celery_published_total{job="producer",task="tasks.search.search",queue="high"} > 0',
    'celery_published_total{job="producer",task="tasks.basic.add",queue="low"} > 0',
    'celery_published_total{job="beat",task="tasks.maintenance.canary",queue="low"} > 0',
    f'celery_beat_last_tick_timestamp_seconds{{job="beat"}} > time() - {RECENT}',
    'celery_beat_lateness_seconds{entry="canary-low"} >= 0 < 5',
    f'celery_producer_last_publish_timestamp_seconds{{job="producer"}} > time() - {RECENT}',
    'celery_producer_throttled{queue="low"} == 0',
    'celery_producer_throttled{queue="high"} == 0',
    'celery_producer_unpublished_total{task="tasks.basic.add"} >= 0',
    "celery_broker_up == 1",
    'count(celery_queue_messages{queue="high",state="waiting"}) == 10',
    'count(celery_queue_messages{queue="low",state="waiting"}) == 10',
    'celery_queue_delayed_messages{queue="low"} >= 0',
    "celery_unacked_messages >= 0 < 100",
    'celery_queue_consumers{queue="high"} == 1',
    'celery_queue_consumers{queue="low"} == 1',
    'celery_queue_oldest_message_age_seconds{queue="high"} >= 0 < 60',
    f'celery_worker_heartbeat_timestamp_seconds{{worker=~"low@.+"}} > time() - {RECENT}',
    f'celery_worker_heartbeat_timestamp_seconds{{worker=~"high@.+"}} > time() - {RECENT}',
    "celery_queue_exporter_scrape_duration_seconds > 0 < 1",
    'count(redis_up{job="redis-exporter"} == 1) == 2',
]


@pytest.mark.main
@pytest.mark.parametrize("expression", PRESENT)
def test_the_metric_is_there_under_steady_with_a_sane_value(expression: str, prometheus: Prometheus) -> None:
    poll_until(lambda: prometheus.query(expression), expression, 60, interval=1)


def counts(prometheus: Prometheus, task: str) -> dict[str, float]:
    """The number of a task's outcomes, by outcome, as the workers report them."""
    found = prometheus.query(f'sum by (outcome) (celery_tasks_total{{task="{task}"}})')
    return {labels["outcome"]: value for labels, value in found}


def wait_for_counts(prometheus: Prometheus, task: str, before: dict[str, float], more: dict[str, int]) -> None:
    """Wait until a task's outcomes have grown by exactly so much, and see that another scrape does not change it."""
    expected = dict(before)
    for outcome, number in more.items():
        expected[outcome] = expected.get(outcome, 0) + number

    poll_until(lambda: counts(prometheus, task) == expected, f"outcomes of {task} to be {expected}", SCRAPED)
    prometheus.wait_scraped("worker-.+")
    assert counts(prometheus, task) == expected


@pytest.mark.disruptive
@pytest.mark.usefixtures("quiet")
class TestCountsOfAKnownBatch:
    """Only the test publishes, so counts are compared exactly."""

    def test_each_attempt_is_an_outcome_and_each_retry_a_publish(self, inside: Inside, prometheus: Prometheus) -> None:
        published = 'sum(celery_published_total{job="worker-low",task="tasks.basic.flaky"})'
        before, published_before = counts(prometheus, "tasks.basic.flaky"), prometheus.value(published)
        ids = inside.call(run.publish, "tasks.basic.flaky", [[2]] * 10)
        poll_until(lambda: inside.call(run.states, ids) == ["SUCCESS"] * 10, "10 flaky tasks done", 60)
        wait_for_counts(prometheus, "tasks.basic.flaky", before, {"retry": 20, "success": 10})
        assert prometheus.value(published) - published_before == 20

    def test_failures_and_revocations_are_outcomes(self, inside: Inside, prometheus: Prometheus) -> None:
        before = counts(prometheus, "tasks.basic.failing")
        ids = inside.call(run.publish, "tasks.basic.failing", [[]] * 7)
        poll_until(lambda: inside.call(run.states, ids) == ["FAILURE"] * 7, "7 failures", 60)
        wait_for_counts(prometheus, "tasks.basic.failing", before, {"failure": 7})

        before = counts(prometheus, "tasks.workflows.square")
        (task,) = inside.call(run.publish, "tasks.workflows.square", [[2]], countdown=3)
        inside.call(run.revoke, task)
        poll_until(lambda: inside.call(run.states, [task]) == ["REVOKED"], "a task revoked", 30)
        wait_for_counts(prometheus, "tasks.workflows.square", before, {"revoked": 1})

    def test_workers_and_celery_exporter_agree(self, stack: Stack, inside: Inside, prometheus: Prometheus) -> None:
        if "celery-exporter" not in stack.enabled:
            pytest.skip("celery-exporter: the profile events is not in COMPOSE_PROFILES (.env)")
        succeeded = 'sum(celery_task_succeeded_total{name="tasks.workflows.square"})'
        before, events_before = counts(prometheus, "tasks.workflows.square"), prometheus.value(succeeded)
        ids = inside.call(run.publish, "tasks.workflows.square", [[n] for n in range(200)])
        poll_until(lambda: inside.call(run.states, ids) == ["SUCCESS"] * 200, "200 squares", 60)
        wait_for_counts(prometheus, "tasks.workflows.square", before, {"success": 200})
        poll_until(
            lambda: prometheus.value(succeeded) - events_before == 200, "celery-exporter to count 200 more", SCRAPED
        )

    def test_the_counts_of_killed_pool_children_are_kept_and_their_files_are_not(
        self, stack: Stack, inside: Inside, prometheus: Prometheus
    ) -> None:
        worker, task = stack.container("worker-low"), "tasks.workflows.square"

        def children() -> set[str]:
            files = stack.docker.container.execute(worker, ["ls", "/run/celery/metrics"])
            return {name.rpartition("_")[2].removesuffix(".db") for name in str(files).split()} - {"0"}

        before = counts(prometheus, task)
        ids = inside.call(run.publish, task, [[n] for n in range(50)])
        poll_until(lambda: inside.call(run.states, ids) == ["SUCCESS"] * 50, "50 squares", 60)
        wait_for_counts(prometheus, task, before, {"success": 50})

        settled = counts(prometheus, task)
        main = str(stack.docker.container.execute(worker, ["cat", "/proc/1/task/1/children"])).split()[0]
        killed = children() - {main}
        assert killed
        stack.docker.container.execute(worker, ["bash", "-c", f"kill -9 {' '.join(killed)}"])
        poll_until(lambda: not children() & killed, f"files of {killed} absorbed", SCRAPED)
        wait_for_counts(prometheus, task, settled, {})
        ids = inside.call(run.publish, task, [[n] for n in range(30)])
        poll_until(lambda: inside.call(run.states, ids) == ["SUCCESS"] * 30, "30 squares by new children", 60)
        wait_for_counts(prometheus, task, settled, {"success": 30})
