"""Real workers with the atomic transport: the ends of tasks, and when they are acknowledged."""

import signal

import pytest

from celery_durable.dead_letters import Reason

from .conftest import NewProject
from .poll import poll_until
from .test_atomic import LEASE
from .test_atomic_workers import LONG, TASKS
from .test_transport import letters

HELD = """
import time

@app.task(name="count", shared=False)
def count(number):
    time.sleep(0.5)
    note("held", str(durable.broker.hlen("unacked")))
"""


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_a_worker_whose_reject_fails_does_not_keep_the_message_and_its_slot(new_project: NewProject, pool: str) -> None:
    project = new_project(TASKS, LONG, **LEASE)
    worker = project.worker("-P", pool, "-c", "1")
    project.app.tasks["refused"].delay(2)
    project.app.tasks["quick"].delay("next")
    project.wait_noted("started")
    project.client.config_set("min-replicas-to-write", 1)  # Redis refuses writes
    worker.wait_for("neither acknowledged nor rejected")
    project.client.config_set("min-replicas-to-write", 0)
    project.wait_noted("ran")
    poll_until(lambda: not project.client.exists("unacked", "celery"), "no message to be left")
    assert project.client.xlen("celery-durable:dead-letters") == 1


def test_what_a_solo_worker_has_run_is_acknowledged_while_a_longer_task_runs(new_project: NewProject) -> None:
    all_in_one_turn = "from celery_durable.atomic import channel\nchannel.DELIVERING = 60\n"
    project = new_project(TASKS + all_in_one_turn, LONG, **LEASE)
    with project.app.durable.batch():
        for number in range(2):
            project.app.tasks["quick"].delay(f"{number}")
        project.app.tasks["slow"].delay("long", 12)
    project.worker("-P", "solo", "-c", "4")
    project.wait_noted("started")
    poll_until(lambda: project.client.hlen("unacked") == 1, "only the long task to be held", 4)
    assert project.noted("ran") == ["0", "1"]
    project.wait_noted("ran", 3)
    poll_until(lambda: not project.client.exists("unacked", "celery"), "no message to be left")
    assert project.noted("ran") == ["0", "1", "long"]


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
@pytest.mark.parametrize(("task", "letters"), [("exits", 1), ("greedy", 0), ("quick", 0)])
def test_a_task_that_celerys_tracer_cannot_handle_ends(
    new_project: NewProject, pool: str, task: str, letters: int
) -> None:
    """sys.exit(), MemoryError; a result that cannot be stored."""
    unreachable = {"result_backend": "redis://127.0.0.1:1/0", "result_backend_max_retries": 1}
    conf = {**LONG, "task_ignore_result": True, **(unreachable if task == "quick" else {})}
    project = new_project(TASKS, conf, **LEASE)
    worker = project.worker("-P", pool, "-c", "1")
    project.app.tasks[task].apply_async(("odd",), ignore_result=task != "quick")
    project.app.tasks["quick"].apply_async(("next",), ignore_result=True)
    poll_until(lambda: "next" in project.noted("ran"), "the next task to run")
    poll_until(lambda: not project.client.exists("unacked", "celery", "celery-durable:delayed:celery"), "all to end")
    assert project.client.xlen("celery-durable:dead-letters") == letters
    assert worker.alive


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_task_whose_failure_cannot_be_stored_is_delivered_again(new_project: NewProject, pool: str) -> None:
    """The worker itself stores it, before it rejects the message."""
    unreachable = {
        "result_backend": "redis://127.0.0.1:1/0",
        "result_backend_max_retries": 1,
        "task_store_errors_even_if_ignored": True,
    }
    project = new_project(TASKS, {**LONG, **unreachable}, **LEASE, max_deliveries=2)
    worker = project.worker("-P", pool, "-c", "1")
    project.app.tasks["refused"].apply_async((0,), ignore_result=True)
    project.wait_noted("started")
    project.app.tasks["quick"].apply_async(("next",), ignore_result=True)
    project.wait_noted("ran")  # the slot is free
    assert len(project.noted("started")) == 1
    project.wait_noted("started", 2, timeout=20)
    poll_until(lambda: project.client.xlen("celery-durable:dead-letters"), "its last delivery to lapse", 20)
    assert not project.client.exists("unacked", "celery")
    assert worker.alive


def test_a_solo_worker_acknowledges_each_task_before_the_next(new_project: NewProject) -> None:
    """Not when all that it has taken are done: if it is killed, they would run again."""
    project = new_project(HELD, {**LONG, "worker_prefetch_multiplier": 5}, **LEASE)
    for number in range(5):
        project.app.tasks["count"].delay(number)
    project.worker("-P", "solo")
    assert project.wait_noted("held", 5) == ["5", "4", "3", "2", "1"]


def test_a_task_that_kills_its_workers_becomes_a_dead_letter(new_project: NewProject) -> None:
    project = new_project(TASKS, LONG, max_deliveries=2, **LEASE)
    project.app.tasks["kills its worker"].delay()
    for number in range(2):
        worker = project.worker("-c", "1", name=f"worker{number}")
        assert worker.process.wait(60) == -signal.SIGKILL
    project.worker("-c", "1")
    poll_until(lambda: letters(project.app), "the dead letter")
    [letter] = letters(project.app)
    assert (letter.reason, letter.task) == (Reason.DELIVERIES, "kills its worker")
    assert len(project.noted("killed")) == 2
    assert not project.client.exists("unacked", "celery")
