"""Programs and Redis killed under load: they come back by themselves, and every task is done."""

import pytest

import timing
from stack import inside as run
from stack.inside import Inside
from stack.poll import poll_until
from stack.stack import Stack

pytestmark = pytest.mark.disruptive

# A killed worker's messages go back to their queue after the visibility timeout; the rest is for running them.
REDELIVERED_WITHIN = timing.VISIBILITY_TIMEOUT + timing.RESTORE_INTERVAL + 4
MARGIN = 45


def wait_done(inside: Inside, ids: list[str]) -> None:
    """Wait until every task has succeeded, those included that must be delivered again."""
    poll_until(
        lambda: inside.call(run.states, ids) == ["SUCCESS"] * len(ids),
        f"all {len(ids)} tasks done",
        REDELIVERED_WITHIN + MARGIN,
        interval=1,
    )


def wait_running(inside: Inside, ids: list[str]) -> list[str]:
    """Wait until tasks run while others wait; the ids of the running ones."""

    def running() -> list[str]:
        states = inside.call(run.states, ids)
        assert "PENDING" in states, "nothing waits any more: the load was too small"
        return [task for task, state in zip(ids, states, strict=True) if state == "STARTED"]

    return poll_until(running, "tasks running", 30)


def test_a_killed_worker_comes_back_and_its_tasks_are_run_again(stack: Stack, inside: Inside) -> None:
    ids = inside.call(run.publish, "tasks.basic.sleep", [[3]] * 12)
    interrupted = wait_running(inside, ids)
    stack.crash("worker-low")
    states = dict(zip(ids, inside.call(run.states, ids), strict=True))
    assert "STARTED" in [states[task] for task in interrupted], "nothing was interrupted: nothing was tested"
    wait_done(inside, ids)


def test_a_killed_broker_keeps_its_messages(stack: Stack, inside: Inside) -> None:
    ids = inside.call(run.publish, "tasks.basic.sleep", [[0.25]] * 120)
    wait_running(inside, ids)
    stack.crash("redis")
    ids += poll_until(lambda: inside.call(run.publish, "tasks.basic.sleep", [[0.25]] * 20), "a publish after it", 30)
    wait_done(inside, ids)


def test_a_broker_that_is_restarted_keeps_its_messages(stack: Stack, inside: Inside) -> None:
    ids = inside.call(run.publish, "tasks.basic.sleep", [[0.25]] * 120)
    wait_running(inside, ids)
    stack.compose.restart("redis")
    stack.wait_healthy()
    wait_done(inside, ids)


def test_results_are_kept_and_tasks_wait_while_the_results_redis_is_killed(stack: Stack, inside: Inside) -> None:
    ids = inside.call(run.publish, "tasks.basic.sleep", [[0.25]] * 120)
    wait_running(inside, ids)
    poll_until(lambda: "SUCCESS" in inside.call(run.states, ids), "a first result", 30)
    stack.crash("redis-results")
    wait_done(inside, ids)
