"""Stopping: each service within its grace period and with its exit code, under load; the stack keeps its backlog."""

import time
from collections.abc import Iterator
from uuid import uuid4

import pytest

from settings import DELIVERY
from stack import inside as run
from stack.inside import Inside
from stack.poll import poll_until
from stack.services import Service
from stack.stack import Stack

pytestmark = pytest.mark.disruptive


@pytest.fixture(scope="module")
def load(stack: Stack) -> Iterator[None]:
    """Tasks on both queues, running and waiting, while services are stopped; in the end every one is done."""
    ids = [
        task
        for queue in ("high", "low")
        for task in stack.inside.call(run.publish, "tasks.basic.sleep", [[1]] * 200, queue=queue, priority=8)
    ]
    yield
    poll_until(
        lambda: stack.inside.call(run.states, ids) == ["SUCCESS"] * len(ids),
        f"all {len(ids)} tasks done",
        180,
        interval=1,
    )


@pytest.mark.usefixtures("load")
def test_it_stops_by_itself_within_its_grace_and_starts_again(service: Service, stack: Stack) -> None:
    begun = time.monotonic()
    stack.compose.stop(service.name)  # SIGTERM, and SIGKILL after the grace period in compose.yaml
    took = time.monotonic() - begun
    container = stack.container(service.name)
    state = container.state
    try:
        # Asked from the engine: by an attempt each service would have to hang, for its whole grace.
        assert (container.config.stop_timeout or 10) == service.grace
        assert state.exit_code in service.stop_codes
        assert not state.oom_killed
        assert took < service.grace
    finally:
        stack.compose.start(service.name)
        stack.wait_healthy()


@pytest.mark.main
def test_a_stopping_worker_finishes_short_tasks_and_returns_long_ones(stack: Stack, inside: Inside) -> None:
    def runs(task: str) -> bool:
        active = inside.call(run.inspect, "active")
        return task in [request["id"] for requests in active.values() for request in requests]

    (long,) = inside.call(run.publish, "tasks.basic.sleep", [[40]], priority=0)
    poll_until(lambda: inside.call(run.states, [long]) == ["STARTED"], "the long task running", 30)
    (short,) = inside.call(run.publish, "tasks.basic.sleep", [[DELIVERY.soft_shutdown - 2]], priority=0)
    poll_until(lambda: inside.call(run.states, [short]) == ["STARTED"], "the short task running beside it", 30)
    with stack.stopped("worker-low"):
        assert inside.call(run.states, [short]) == ["SUCCESS"]
    poll_until(lambda: runs(long), "the long task running again", 30)
    inside.call(run.revoke, long, terminate=True)
    poll_until(lambda: inside.call(run.states, [long]) == ["REVOKED"], "the long task revoked", 30)


def test_the_whole_stack_stopped_and_started_keeps_its_backlog_and_all_data(stack: Stack, inside: Inside) -> None:
    mark = str(uuid4())
    # When Redis loads its AOF it drops writes of EXEC if the default user has no rights; other writes are kept.
    inside.call(run.broker_transaction, ["SET", "low-kept", mark], ["HSET", "low-kept-hash", "mark", mark])
    inside.call(run.results_transaction, ["SET", "run:kept", mark], ["HSET", "run:kept-hash", "mark", mark])
    index = inside.call(run.results_redis, "GET", "index:current")
    (done,) = inside.call(run.publish, "tasks.basic.add", [[1, 2]])
    poll_until(lambda: inside.call(run.states, [done]) == ["SUCCESS"], "a result", 60)
    ids = inside.call(run.publish, "tasks.basic.sleep", [[0.5]] * 100, priority=7)
    poll_until(lambda: "SUCCESS" in inside.call(run.states, ids), "the backlog begun", 60)

    stack.compose.stop()
    assert {container.state.status for container in stack.containers()} == {"exited"}
    stack.compose.start()
    stack.wait_healthy()

    assert "PENDING" in poll_until(lambda: inside.call(run.states, ids), "Redis to answer", 10), "the backlog was empty"
    stack.prometheus.wait_scraped("worker-.+")  # every message, so none from before the stop is left
    assert inside.call(run.broker, "GET", "low-kept") == mark
    assert inside.call(run.broker, "HGET", "low-kept-hash", "mark") == mark
    assert inside.call(run.results_redis, "GET", "run:kept") == mark
    assert inside.call(run.results_redis, "HGET", "run:kept-hash", "mark") == mark
    assert inside.call(run.results, [done])[0]["result"] == 3
    assert inside.call(run.results_redis, "EXISTS", "index:current") == (1 if index else 0)
    poll_until(lambda: inside.call(run.states, ids) == ["SUCCESS"] * 100, "the backlog done", 180, interval=1)
    inside.call(run.broker, "DEL", "low-kept", "low-kept-hash")
    inside.call(run.results_redis, "DEL", "run:kept", "run:kept-hash")
