"""Real workers with the atomic transport: kills, restarts of Redis, stock workers beside them."""

import json
import time
from argparse import Namespace
from typing import Any

import pytest
from kombu import Connection, Consumer, Queue

from celery_durable import delayed

from .conftest import NewProject
from .poll import poll_until
from .redis_server import RedisServer
from .test_atomic import LEASE

TASKS = """
import time
from celery.exceptions import Reject
from celery.worker.control import inspect_command

@inspect_command()
def timers(state):
    return len(state.consumer.timer.queue)

@app.task(name="quick", shared=False)
def quick(name):
    note("ran", name)

@app.task(name="early", shared=False, acks_late=False)
def early(name):
    note("ran", name)

@app.task(name="kills its worker", shared=False)
def kills():
    note("killed")
    os.kill(os.getppid(), 9)

@app.task(name="exits", shared=False)
def exits(name):
    raise SystemExit(1)

@app.task(name="greedy", shared=False)
def greedy(name):
    raise MemoryError(name)

@app.task(name="later", shared=False, bind=True)
def later(self, seconds):
    if self.request.retries:
        note("again", self.request.retries)
    else:
        raise self.retry(countdown=seconds)

@app.task(name="refused", shared=False, ignore_result=True)
def refused(seconds):
    note("started", "refused")
    time.sleep(seconds)
    raise Reject("no", requeue=False)

@app.task(name="slow", shared=False)
def slow(name, seconds):
    note("started", name)
    time.sleep(seconds)
    note("ran", name)
"""
STEPS = {"broker_transport_options": {"priority_steps": list(range(10))}}
LONG = {**STEPS, "task_time_limit": 60, "task_soft_time_limit": 50}


def test_no_task_is_lost_with_its_worker(new_project: NewProject) -> None:
    """Without the outbox: twelve kills while messages are being taken."""
    project = new_project(TASKS, STEPS, **LEASE)
    names = []
    for kill in range(12):
        worker = project.worker("-c", "2", "--without-gossip", "--without-mingle", name=f"worker{kill}")
        names += [f"{kill} {number}" for number in range(40)]
        for number in range(40):
            project.app.tasks["quick"].delay(f"{kill} {number}")
        worker.kill()
    project.worker("-c", "2", name="last")
    poll_until(lambda: set(project.noted("ran")) == set(names), "all tasks to run", 60)
    poll_until(lambda: not project.client.exists("unacked", "celery"), "no message to be left", 60)


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_without_prefetch_a_worker_holds_only_what_it_runs(new_project: NewProject, pool: str) -> None:
    project = new_project(TASKS, {**LONG, "worker_disable_prefetch": True}, **LEASE)
    project.worker("-P", pool, "-c", "1", name="one")
    most = 0
    for batch in ("a", "b"):  # it waits for messages in between, and wakes up again
        for number in range(5):
            project.app.tasks["slow"].delay(f"{batch}{number}", 0.3)
        wanted = 5 * "ab".index(batch) + 5

        def ran(wanted: int = wanted) -> bool:
            nonlocal most
            most = max(most, project.client.hlen("unacked"))
            return len(project.noted("ran")) == wanted

        poll_until(ran, f"{wanted} tasks to run")
        poll_until(lambda: not project.client.exists("unacked"), "the messages to be acknowledged")
    assert most == 1
    assert (
        project.noted("started")
        == project.noted("ran")
        == [f"{batch}{number}" for batch in "ab" for number in range(5)]
    )


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_short_tasks_do_not_wait_for_a_long_one_that_was_read_ahead_with_them(
    new_project: NewProject, pool: str
) -> None:
    project = new_project(TASKS, LONG, **LEASE)
    with project.app.durable.batch():
        for number in range(600):
            project.app.tasks["quick"].delay(f"{number}")
            if number == 500:
                for name in ("one", "two"):
                    project.app.tasks["slow"].delay(name, 20)
    for name in ("one", "two", "three"):
        project.worker("-P", pool, "-c", "1", name=name)
    project.wait_noted("ran", 600)
    assert sorted(project.noted("started")) == ["one", "two"]
    assert sorted(map(int, project.noted("ran"))) == list(range(600)), "a long task ended before a short one ran"
    project.wait_noted("ran", 602)
    poll_until(lambda: not project.client.exists("unacked", "celery"), "no message to be left")


def test_each_task_runs_once_while_the_pool_grows_and_shrinks(new_project: NewProject) -> None:
    project = new_project(TASKS, LONG, **LEASE)
    project.worker("--autoscale=4,1", AUTOSCALE_KEEPALIVE="1")

    def processes() -> int:
        return len(project.app.control.inspect().stats()["worker@test"]["pool"]["processes"])

    ran = []
    for turn in range(2):
        names = [f"{turn} {number}" for number in range(100)]
        for name in names:
            project.app.tasks["slow"].delay(name, 0.1)
        poll_until(lambda: processes() == 4, "the pool to grow")
        ran += names
        assert sorted(project.wait_noted("ran", len(ran))) == sorted(ran)
        poll_until(lambda: processes() == 1, "the pool to shrink")
    poll_until(lambda: not project.client.exists("unacked", "celery"), "no message to be left")
    assert len(project.noted("ran")) == len(ran)


def test_delayed_tasks_of_stock_publishers_take_no_slot_of_a_worker(new_project: NewProject) -> None:
    project = new_project(TASKS, STEPS, **LEASE)
    for number in range(20):
        project.stock_app.send_task("quick", [f"later {number}"], countdown=8)
    project.worker("-c", "1")
    poll_until(lambda: project.client.zcard("celery-durable:delayed:celery") == 20, "all to be parked")
    assert not project.client.exists("unacked")
    project.stock_app.send_task("quick", ["now"])
    project.wait_noted("ran", 21)
    assert project.noted("ran")[0] == "now"
    assert len(set(project.noted("ran"))) == len(project.noted("ran")) == 21


def test_a_delayed_task_that_has_expired_does_not_run(new_project: NewProject) -> None:
    project = new_project(TASKS, STEPS, **LEASE)
    project.app.tasks["quick"].apply_async(("expired",), countdown=3, expires=1)
    project.app.tasks["quick"].apply_async(("in time",), countdown=3, expires=300)
    worker = project.worker("-c", "1")
    project.wait_noted("ran")
    worker.wait_for("Discarding revoked task")
    poll_until(lambda: not project.client.exists("unacked", "celery"), "no message to be left")
    assert project.noted("ran") == ["in time"]


def test_a_retry_may_be_later_than_any_time_out(new_project: NewProject) -> None:
    project = new_project(TASKS, STEPS, **LEASE)
    worker = project.worker("-c", "1")
    project.app.tasks["later"].delay(86_400 * 40)
    poll_until(lambda: project.client.zcard("celery-durable:delayed:celery"), "the retry to be delayed")
    ((member, due),) = project.client.zrange("celery-durable:delayed:celery", 0, -1, withscores=True)
    assert json.loads(member.split("\0")[2])["headers"]["retries"] == 1
    assert 86_400 * 39 < due - time.time() < 86_400 * 40 + 60
    poll_until(lambda: not project.client.exists("unacked"), "the first message to be acknowledged")
    worker.kill()
    assert delayed.run(project.app, Namespace(action="run", id=None, task=None, all=True)) == 0
    project.worker("-c", "1", name="next")
    assert project.wait_noted("again") == ["1"]


def test_a_stock_worker_runs_what_ours_published_and_ours_what_it_held(
    new_project: NewProject, redis_server: RedisServer
) -> None:
    project = new_project(TASKS, STEPS, visibility_timeout=7, **LEASE)
    with Connection(redis_server.url) as stock:
        taken: list[Any] = []
        consumer = Consumer(stock.default_channel, [Queue("celery")], on_message=taken.append)
        consumer.consume()
        project.app.tasks["quick"].delay("a")
        stock.drain_events(timeout=10)
        assert taken[0].headers["task"] == "quick"
        stock.default_channel.qos._delivered.clear()  # as if it was killed
    project.worker("-c", "1")
    assert project.wait_noted("ran") == ["a"]


def test_no_timer_is_left_of_tasks_that_have_ended(new_project: NewProject) -> None:
    project = new_project(TASKS, LONG, **LEASE)
    project.worker("-c", "2")
    with project.app.durable.batch():
        for number in range(300):
            project.app.tasks["quick"].delay(str(number))
    project.wait_noted("ran", 300)

    def few() -> bool:
        (timers,) = project.app.control.inspect(timeout=5)._request("timers").values()
        return bool(timers < 50)

    poll_until(few, "the worker to forget the time limits of 300 tasks", 40)


def test_a_worker_whose_clock_is_behind_runs_what_is_due(new_project: NewProject) -> None:
    behind = """
from celery_durable import consumer

class Behind:
    @staticmethod
    def time():
        return time.time() - 60

consumer.time = Behind
"""
    project = new_project(behind + TASKS, STEPS, **LEASE)
    project.app.tasks["quick"].apply_async(("a",), countdown=2)
    project.worker("-c", "1")
    assert project.wait_noted("ran", timeout=20) == ["a"]


@pytest.mark.parametrize("seconds", [-3600, 3600])
def test_the_clock_of_a_worker_does_not_matter_to_leases(new_project: NewProject, seconds: int) -> None:
    """One with another clock keeps what it holds, and takes nothing from others."""
    other_clock = """
import os
if seconds := int(os.environ.get("CLOCK", 0)):
    right = time.time
    time.time = lambda: right() + seconds
"""
    project = new_project(other_clock + TASKS, LONG, **LEASE)
    project.worker("-c", "1", name="right")
    project.worker("-c", "1", name="other", CLOCK=str(seconds))
    for name in ("a", "b"):
        project.app.tasks["slow"].delay(name, 3 * LEASE["lease"])
    project.wait_noted("ran", 2)
    assert sorted(project.noted("started")) == ["a", "b"]
