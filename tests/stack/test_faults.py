"""Programs and Redis killed under load: they restart by themselves, and every task is done."""

import json
import time
from uuid import uuid4

import pytest

from celery_durable.atomic.leases import TAG_PREFIX
from stack import inside as run
from stack.inside import Inside
from stack.poll import poll_until
from stack.stack import REDELIVERED_WITHIN, Stack, service_of

pytestmark = pytest.mark.disruptive

MARGIN = 45  # s, to run what was redelivered


def wait_done(inside: Inside, ids: list[str]) -> None:
    """Wait until every task has succeeded, including redelivered ones."""
    poll_until(
        lambda: inside.call(run.states, ids) == ["SUCCESS"] * len(ids),
        f"all {len(ids)} tasks done",
        REDELIVERED_WITHIN + MARGIN,
        interval=1,
    )


def wait_running(inside: Inside, ids: list[str]) -> list[str]:
    """Wait until tasks run while others wait; returns the ids of the running ones."""

    def running() -> list[str]:
        states = inside.call(run.states, ids)
        assert "PENDING" in states, "no task waits: the load was too small"
        return [task for task, state in zip(ids, states, strict=True) if state == "STARTED"]

    return poll_until(running, "tasks running", 30)


def test_a_killed_worker_restarts_and_its_tasks_run_again(stack: Stack, inside: Inside) -> None:
    ids = inside.call(run.publish, "tasks.basic.sleep", [[3]] * 12)
    interrupted = wait_running(inside, ids)
    stack.crash("worker-low")
    states = dict(zip(ids, inside.call(run.states, ids), strict=True))
    assert "STARTED" in [states[task] for task in interrupted], "nothing was interrupted: nothing was tested"
    wait_done(inside, ids)


def test_a_message_whose_lease_has_ended_returns_to_its_queue(stack: Stack, inside: Inside) -> None:
    with stack.stopped("worker-low"):
        (task,) = inside.call(run.publish, "tasks.basic.add", [[1, 2]], priority=0)
        message, tag = json.loads(inside.call(run.broker, "RPOP", "low")), f"{TAG_PREFIX}gone:0"
        inside.call(run.broker, "HSET", "unacked", tag, json.dumps([message, "low", "low"]))
        inside.call(run.broker, "ZADD", "unacked_index", 1, tag)
        poll_until(lambda: inside.call(run.broker, "LLEN", "low"), "the message back in its queue", 30)
    poll_until(lambda: inside.call(run.states, [task]) == ["SUCCESS"], "the task done", 30)


def test_a_lost_message_is_published_again_although_newer_ones_wait(stack: Stack, inside: Inside) -> None:
    """By the outbox, which looks for the message in its whole queue first."""
    lost = uuid4().hex
    with stack.stopped("worker-low"):
        for task in (lost, uuid4().hex):
            inside.call(run.submit, "chaos.ledger.apply", [task], [0], {"priority": 0})
            if task == lost:
                inside.call(run.broker, "RPOP", "low")
        entry = json.loads(inside.call(run.results_redis, "HGET", "celery-durable:outbox", lost))
        old = json.dumps({**entry, "published": time.time() - 1000})
        inside.call(run.results_redis, "HSET", "celery-durable:outbox", lost, old)
        inside.call(run.results_redis, "ZADD", "celery-durable:outbox:due", time.time(), lost)
        poll_until(
            lambda: lost in str(inside.call(run.broker, "LRANGE", "low", 0, -1)),
            "the lost message in its queue again",
            30,
        )
    poll_until(lambda: not inside.call(run.results_redis, "HEXISTS", "celery-durable:outbox", lost), "it to end", 30)


def test_a_task_whose_process_is_killed_runs_again_and_is_dead_lettered_in_the_end(
    stack: Stack, inside: Inside, newest: str
) -> None:
    (task,) = inside.call(run.publish, "tasks.basic.sleep", [[40]], priority=0)
    killed: set[int] = set()

    def process() -> int:
        active = inside.call(run.inspect, "active")
        running = [request for requests in active.values() for request in requests if request["id"] == task]
        return 0 if running[0]["worker_pid"] in killed else running[0]["worker_pid"]

    for _ in range(4):  # the first attempt and 3 retries
        pid = poll_until(process, "the task in a process that was not killed", 30)
        stack.docker.container.execute(stack.container("worker-low"), ["bash", "-c", f"kill -9 {pid}"])
        killed.add(pid)
    poll_until(lambda: inside.call(run.states, [task]) == ["FAILURE"], "the task given up", 30)
    letters = poll_until(lambda: inside.call(run.dead_letters, newest), "its dead letter", 30)
    assert [(letter["id"], letter["reason"]) for letter in letters] == [(task, "killed its process")]


def test_a_killed_broker_keeps_its_messages(stack: Stack, inside: Inside) -> None:
    ids = inside.call(run.publish, "tasks.basic.sleep", [[0.25]] * 120)
    wait_running(inside, ids)
    stack.crash("redis")
    ids += poll_until(lambda: inside.call(run.publish, "tasks.basic.sleep", [[0.25]] * 20), "a publish after it", 30)
    wait_done(inside, ids)


def test_a_broker_that_is_restarted_keeps_its_messages(stack: Stack, inside: Inside) -> None:
    def restarts() -> dict[str, int | None]:
        return {c.name: c.restart_count for c in stack.containers() if service_of(c) != "redis"}

    before = restarts()
    ids = inside.call(run.publish, "tasks.basic.sleep", [[0.25]] * 120)
    wait_running(inside, ids)
    stack.compose.restart("redis")
    stack.wait_healthy()
    wait_done(inside, ids)
    assert restarts() == before, "a program without the broker waits for it, and does not exit"


def test_results_are_kept_and_tasks_wait_while_the_results_redis_is_killed(stack: Stack, inside: Inside) -> None:
    ids = inside.call(run.publish, "tasks.basic.sleep", [[0.25]] * 120)
    wait_running(inside, ids)
    poll_until(lambda: "SUCCESS" in inside.call(run.states, ids), "a first result", 30)
    stack.crash("redis-results")
    wait_done(inside, ids)
