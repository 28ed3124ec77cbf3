"""Real workers with the atomic transport: tasks that are longer than a lease.

LEASES=480 pytest -n 3 -k freezes: as many leases as a task of two hours has with the default one; takes 40 minutes.
"""

import os
from threading import Event

import pytest

from .conftest import NewProject
from .poll import poll_until
from .redis_server import RedisServer
from .test_atomic import LEASE
from .test_atomic_workers import LONG, TASKS

LEASES = int(os.environ.get("LEASES", "8"))  # of a task during which Redis restarts and freezes


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_task_may_be_longer_than_a_lease(new_project: NewProject, pool: str) -> None:
    project = new_project(TASKS, LONG, **LEASE)
    project.worker("-P", pool, "-c", "1", name="one", REMAP_SIGTERM="SIGQUIT")
    project.worker("-P", pool, "-c", "1", name="two", REMAP_SIGTERM="SIGQUIT")
    project.app.tasks["slow"].delay("a", 3 * LEASE["lease"])
    project.wait_noted("ran")
    poll_until(lambda: not project.client.exists("unacked"), "the message to be acknowledged")
    assert project.noted("started") == ["a"]


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_task_runs_once_although_redis_restarts_and_freezes_meanwhile(
    new_project: NewProject, redis_server: RedisServer, pool: str
) -> None:
    """Its worker reconnects, goes on renewing, and acknowledges over the new connection. The freeze is four leases
    long: with the default lease a minute."""
    seconds = LEASES * LEASE["lease"]
    limits = {"task_time_limit": 2 * seconds + 60, "task_soft_time_limit": 2 * seconds + 50}
    project = new_project(TASKS, {**LONG, **limits}, **LEASE)
    for name in ("one", "two"):
        project.worker("-P", pool, "-c", "1", name=name)
    project.app.tasks["slow"].delay("a", seconds)
    project.wait_noted("started")
    redis_server.kill()
    redis_server.start()
    thawed = Event()
    with redis_server.frozen():
        thawed.wait(4 * LEASE["lease"])
    project.wait_noted("ran", timeout=seconds + 80)
    poll_until(lambda: not project.client.exists("unacked"), "the message to be acknowledged")
    assert project.noted("started") == ["a"]


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_task_runs_once_although_its_worker_is_told_to_stop_while_redis_is_down(
    new_project: NewProject, redis_server: RedisServer, pool: str
) -> None:
    project = new_project(TASKS, LONG, **LEASE)
    one = project.worker("-P", pool, "-c", "1", name="one")
    project.app.tasks["slow"].delay("a", 5 * LEASE["lease"])
    project.wait_noted("started")
    redis_server.kill()
    one.wait_for("Connection to broker lost")
    one.process.terminate()
    one.wait_for("Warm shutdown")
    redis_server.start()
    project.worker("-P", pool, "-c", "1", name="two")
    project.wait_noted("ran")
    poll_until(lambda: not project.client.exists("unacked"), "the message to be acknowledged", 5)
    assert project.noted("started") == ["a"]
