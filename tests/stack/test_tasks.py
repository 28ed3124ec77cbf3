"""Tasks as a user sends them: every state, routing, priorities, beat."""

import json
import time

import pytest

from stack import inside as run
from stack.inside import Inside
from stack.poll import poll_until
from stack.web import Prometheus

pytestmark = pytest.mark.main


def wait_for_state(inside: Inside, task: str, state: str, timeout: float = 30) -> None:
    """Wait until a task is in a state."""
    poll_until(lambda: inside.call(run.states, [task]) == [state], f"task {task} in state {state}", timeout)


def test_a_task_is_pending_then_started_then_a_success(inside: Inside) -> None:
    assert inside.call(run.states, ["00000000-no-such-task"]) == ["PENDING"]
    (task,) = inside.call(run.publish, "tasks.basic.sleep", [[2]])
    wait_for_state(inside, task, "STARTED")
    wait_for_state(inside, task, "SUCCESS")
    (result,) = inside.call(run.results, [task])
    assert result["result"] == 2


def test_a_task_that_raises_is_a_failure_with_its_exception(inside: Inside) -> None:
    (task,) = inside.call(run.publish, "tasks.basic.failing", [["as a test"]])
    wait_for_state(inside, task, "FAILURE")
    (result,) = inside.call(run.results, [task])
    assert "RuntimeError" in result["result"]
    assert "as a test" in result["result"]


def test_a_task_that_fails_for_a_while_is_retried_until_it_succeeds(inside: Inside) -> None:
    (task,) = inside.call(run.publish, "tasks.basic.flaky", [[4]])
    seen = set()

    def succeeded() -> bool:
        seen.update(inside.call(run.states, [task]))
        return "SUCCESS" in seen

    poll_until(succeeded, f"task {task} in state SUCCESS", 60, interval=0.05)
    assert "RETRY" in seen
    (result,) = inside.call(run.results, [task])
    assert result["result"] == 5, "four failures, then the fifth attempt"


def test_a_wrong_argument_fails_at_once(inside: Inside) -> None:
    (task,) = inside.call(run.publish, "tasks.basic.add", [["one", 1]])
    wait_for_state(inside, task, "FAILURE")
    (result,) = inside.call(run.results, [task])
    assert "x: should be a valid number; it is 'one'" in result["result"]


def test_a_task_that_is_revoked_before_it_runs_never_runs(inside: Inside) -> None:
    (task,) = inside.call(run.publish, "tasks.basic.add", [[1, 1]], countdown=3)
    inside.call(run.revoke, task)
    wait_for_state(inside, task, "REVOKED")


def test_a_running_task_can_be_revoked(inside: Inside) -> None:
    (task,) = inside.call(run.publish, "tasks.basic.sleep", [[40]])
    wait_for_state(inside, task, "STARTED")
    inside.call(run.revoke, task, terminate=True)
    wait_for_state(inside, task, "REVOKED")


def test_a_task_reports_its_progress(inside: Inside) -> None:
    (task,) = inside.call(run.publish, "tasks.advanced.progress", [[5, 3]])
    wait_for_state(inside, task, "PROGRESS")
    wait_for_state(inside, task, "SUCCESS")


def test_chains_groups_and_chords_give_the_right_numbers(inside: Inside) -> None:
    chain = inside.call(run.publish_canvas, "add_then_square", 2, 3)
    chord = inside.call(run.publish_canvas, "sum_of_squares", [1, 2, 3, 4])
    for task, number in ((chain, 25), (chord, 30)):
        wait_for_state(inside, task, "SUCCESS")
        assert inside.call(run.results, [task])[0]["result"] == number


def test_queries_run_on_high_workers_and_all_else_on_low_ones(inside: Inside) -> None:
    for task, arguments, worker in (
        ("tasks.search.search", ["import"], "high@"),
        ("tasks.search.stats", [], "high@"),
        ("tasks.search.audit", [], "low@"),
        ("tasks.basic.add", [1, 2], "low@"),
        ("tasks.workflows.square", [3], "low@"),
    ):
        (task_id,) = inside.call(run.publish, task, [arguments])
        wait_for_state(inside, task_id, "SUCCESS")
        assert inside.call(run.results, [task_id])[0]["worker"].startswith(worker), task


def test_a_worker_leaves_messages_in_the_queue_until_it_can_run_them(inside: Inside) -> None:
    ids = inside.call(run.publish, "tasks.basic.sleep", [[0.5]] * 20, priority=0)
    poll_until(lambda: "SUCCESS" in inside.call(run.states, ids), "a first result", 30)
    (reserved,) = [tasks for name, tasks in inside.call(run.inspect, "reserved").items() if name.startswith("low@")]
    assert len(reserved) <= 2, "its slots, for tasks that have just become due"
    poll_until(lambda: inside.call(run.states, ids) == ["SUCCESS"] * 20, "all 20 tasks done", 60)


def test_an_unknown_queue_is_refused(inside: Inside) -> None:
    assert inside.call(run.refused, "tasks.basic.add", queue="hihg") == "QueueNotFound"


def test_a_task_may_be_sent_to_the_other_queue_by_name(inside: Inside) -> None:
    (task,) = inside.call(run.publish, "tasks.basic.add", [[1, 2]], queue="high")
    wait_for_state(inside, task, "SUCCESS")
    assert inside.call(run.results, [task])[0]["worker"].startswith("high@")


@pytest.mark.parametrize("entry", ["canary-high", "canary-low"])
def test_beat_sends_on_the_clock_and_a_worker_of_the_queue_runs_it(
    entry: str, inside: Inside, prometheus: Prometheus
) -> None:
    queue = entry.removeprefix("canary-")
    before = time.time()

    def fresh_canary() -> bool:
        sign = json.loads(inside.call(run.results_redis, "GET", f"canary:{queue}") or "{}")
        return bool(sign.get("ran", 0) > before) and sign["worker"].startswith(f"{queue}@")

    poll_until(fresh_canary, f"a canary of queue {queue} newer than this test", 40)
    lateness = poll_until(
        lambda: prometheus.query(f'celery_beat_lateness_seconds{{entry="{entry}"}}'),
        "beat's lateness in Prometheus",
        20,
    )
    assert 0 < lateness[0][1] < 5, "sent within 5 s of a multiple of its period, and never quite on it"
