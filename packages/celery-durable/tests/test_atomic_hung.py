"""Real workers with the atomic transport: leases do not for long outlive a killed or hung process, or a hung task."""

import pytest

from celery_durable import Config
from celery_durable.dead_letters import Reason
from celery_durable.watchdog import EXIT_CODE

from .conftest import NewProject
from .poll import poll_until
from .test_atomic import LEASE
from .test_atomic_workers import LONG, TASKS
from .test_transport import letters

HANG = """
from celery.worker.control import control_command

@control_command()
def hang(state):
    time.sleep(3600)
"""
SOON = {"watchdog_interval": 0.5, "hung_after": 4, "soft_shutdown": 2}


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_task_of_a_killed_worker_runs_elsewhere_within_20_s(new_project: NewProject, pool: str) -> None:
    """With the default lease, however long the task takes."""
    project = new_project(TASKS, LONG, transport="atomic", lease=Config.lease, lease_renewal=Config.lease_renewal)
    killed = project.worker("-P", pool, "-c", "1", name="killed")
    project.app.tasks["slow"].delay("a", 45)
    project.wait_noted("started")
    project.worker("-P", pool, "-c", "1", name="other")
    killed.kill()
    project.wait_noted("started", 2, timeout=20)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_the_task_of_a_worker_whose_loop_does_not_run_is_redelivered(new_project: NewProject, pool: str) -> None:
    project = new_project(TASKS + HANG, LONG, **LEASE, **SOON)
    hung = project.worker("-P", pool, "-c", "1", name="hung")
    project.app.tasks["slow"].delay("a", 30)
    project.wait_noted("started")
    project.worker("-P", pool, "-c", "1", name="other")
    project.app.control.broadcast("hang", destination=["hung@test"])
    project.wait_noted("started", 2, timeout=SOON["hung_after"] + LEASE["lease"] + 20)
    assert hung.process.wait(10) == EXIT_CODE


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_a_task_that_hangs_ends_its_worker(new_project: NewProject, pool: str) -> None:
    """It becomes a dead letter, as with the prefork pool; other tasks of the worker are redelivered."""
    project = new_project(TASKS, LONG, **LEASE, **SOON)
    hung = project.worker("-P", pool, "-c", "2", name="hung")
    for name in ("hangs", "other") if pool == "threads" else ("hangs",):
        limit = 4 if name == "hangs" else 60
        project.app.tasks["slow"].apply_async((name, 3600 if name == "hangs" else 10), time_limit=limit)
    project.wait_noted("started", 2 if pool == "threads" else 1)
    assert hung.process.wait(60) == EXIT_CODE
    assert "runs for longer than its time limit, 4 s" in hung.log
    ((reason, error),) = [(letter.reason, letter.error) for letter in letters(project.app)]
    assert (reason, error) == (Reason.TIME_LIMIT, "4 s")
    project.worker("-P", pool, "-c", "2", name="next")
    project.app.tasks["quick"].delay("after")
    project.wait_noted("ran", 2 if pool == "threads" else 1)
    poll_until(lambda: not project.client.exists("unacked"), "the messages to be acknowledged")
    assert sorted(project.noted("started")) == (["hangs", "other", "other"] if pool == "threads" else ["hangs"])


def test_a_task_of_the_solo_pool_may_take_longer_than_a_blocked_loop(new_project: NewProject) -> None:
    project = new_project(TASKS, LONG, **LEASE, **SOON)
    worker = project.worker("-P", "solo", name="solo")
    project.app.tasks["slow"].delay("a", 3 * SOON["hung_after"])
    assert project.wait_noted("ran") == project.noted("started") == ["a"]
    assert worker.alive
