"""Real workers with the atomic transport: what their pools hold when they stop, or lose a connection."""

import json
import os
import signal
from base64 import b64decode

import pytest

from .conftest import NewProject
from .poll import poll_until
from .project import Project
from .redis_server import RedisServer
from .test_atomic import LEASE
from .test_atomic_workers import LONG, TASKS

SLOW_THREADS = """
from celery.concurrency import thread
apply_target = thread.apply_target

def slow_start(*args, **kwargs):
    note("begun")
    while not durable.store.exists("go"):
        time.sleep(0.1)
    return apply_target(*args, **kwargs)

thread.apply_target = slow_start
"""


def of_workers(project: Project, **kind: str) -> list[str]:
    """The ids of the workers' connections to the broker; those of tasks and of tests have another name."""
    return [each["id"] for each in project.client.client_list(**kind) if each["name"].startswith("celery-worker:")]


def cut(project: Project) -> None:
    """Close the workers' connections to the broker, and not those of the tasks."""
    for connection in of_workers(project):
        project.client.client_kill_filter(_id=connection)


def test_what_a_stopping_worker_has_read_ahead_does_not_wait_for_its_last_task(new_project: NewProject) -> None:
    project = new_project(TASKS, LONG, **LEASE)
    with project.app.durable.batch():
        project.app.tasks["slow"].delay("long", 25)
        for number in range(5000):
            project.app.tasks["quick"].delay(f"{number}")
    worker = project.worker("-c", "2")
    project.wait_noted("ran", 500)
    project.app.control.shutdown()  # warm
    worker.wait_for("Got shutdown from remote")
    poll_until(lambda: project.client.hlen("unacked") == 1, "only the long task to be held", 15)
    assert worker.alive
    ran = project.noted("ran")
    assert len(ran) + project.client.llen("celery") == 5000
    assert len(set(ran)) == len(ran)
    worker.process.wait(60)
    assert not project.client.exists("unacked")
    assert project.noted("ran")[-1] == "long"


@pytest.mark.parametrize("event", ["warm stop", "lost connection"])
@pytest.mark.parametrize("task", ["quick", "early"])
def test_a_task_that_a_child_process_has_got_runs_once(new_project: NewProject, task: str, event: str) -> None:
    """The child is stopped, so that it has got the task but has not said so: a moment of each task, made long."""
    project = new_project(TASKS, LONG, **LEASE)
    worker = project.worker("-c", "1")
    [child] = project.app.control.inspect().stats()["worker@test"]["pool"]["processes"]
    os.kill(child, signal.SIGSTOP)
    project.app.tasks[task].delay("once")
    worker.wait_for(f"Task {task}")
    assert of_workers(project, _type="pubsub")
    if event == "warm stop":
        project.app.control.shutdown()
        worker.wait_for("Got shutdown from remote")
        poll_until(lambda: not of_workers(project, _type="pubsub"), "the worker to have left its queues")
    else:
        cut(project)
        worker.wait_for("Connection to broker lost")
        worker.wait_for("Connected to", times=2)
    os.kill(child, signal.SIGCONT)
    project.wait_noted("ran")
    poll_until(lambda: not project.client.exists("unacked", "celery"), "its message to be acknowledged", 3)
    if event == "warm stop":
        worker.process.wait(30)
    project.app.tasks["quick"].delay("next")
    if event == "warm stop":
        project.worker("-c", "1", name="second")
    assert project.wait_noted("ran", 2) == ["once", "next"]
    poll_until(lambda: not project.client.exists("unacked", "celery"), "no message to be left", 30)


def test_a_task_that_a_thread_has_got_runs_once(new_project: NewProject) -> None:
    """The same moment in the threads pool: the connection is lost in it."""
    project = new_project(TASKS + SLOW_THREADS, LONG, **LEASE)
    worker = project.worker("-P", "threads", "-c", "1")
    project.app.tasks["quick"].delay("once")
    project.wait_noted("begun")
    cut(project)
    worker.wait_for("Connected to", times=2)
    project.client.set("go", 1)
    project.app.tasks["quick"].delay("next")
    assert project.wait_noted("ran", 2) == ["once", "next"]
    poll_until(lambda: not project.client.exists("unacked", "celery"), "no message to be left", 30)
    assert len(project.noted("ran")) == 2


def test_a_task_whose_process_a_cold_stop_ends_runs_again(new_project: NewProject) -> None:
    project = new_project(TASKS, LONG, **LEASE)
    project.app.tasks["slow"].delay("long", 30)
    first = project.worker("-c", "1")
    project.wait_noted("started")
    first.process.send_signal(signal.SIGQUIT)
    first.process.wait(30)
    assert project.client.llen("celery") + project.client.hlen("unacked") == 1
    project.worker("-c", "1", name="second")
    project.wait_noted("started", 2, timeout=20)


@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_a_cold_stop_waits_for_a_task_that_it_cannot_end(new_project: NewProject, pool: str) -> None:
    """Celery stores FAILURE for such a task, and acknowledges it (solo), or says that the error is unrecoverable."""
    project = new_project(TASKS, LONG, **LEASE)
    result = project.app.tasks["slow"].delay("long", 5)
    worker = project.worker("-P", pool, "-c", "1")
    project.wait_noted("started")
    worker.process.send_signal(signal.SIGQUIT)
    worker.process.wait(30)
    assert (project.noted("ran"), result.state) == (["long"], "SUCCESS")
    assert not project.client.exists("unacked", "celery")
    assert "Unrecoverable" not in worker.log


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_no_task_runs_twice_because_connections_are_lost(new_project: NewProject, pool: str) -> None:
    project = new_project(TASKS, LONG, **LEASE)
    worker = project.worker("-P", pool, "-c", "2")
    names = [f"{number}" for number in range(400)]
    with project.app.durable.batch():
        for name in names:
            project.app.tasks["slow"].delay(name, 0.02)
    for lost in range(1, 6):
        project.wait_noted("ran", 30 * lost)
        cut(project)
        worker.wait_for("Connection to broker lost", times=lost)
    project.wait_noted("ran", len(names))
    poll_until(lambda: not project.client.exists("unacked", "celery"), "no message to be left")
    assert sorted(project.noted("started")) == sorted(names)
    assert project.app.control.inspect().active() == {"worker@test": []}


def test_a_child_process_that_is_killed_before_it_runs_what_it_got(new_project: NewProject) -> None:
    project = new_project(TASKS, LONG, **LEASE)
    worker = project.worker("-c", "1")
    [child] = project.app.control.inspect().stats()["worker@test"]["pool"]["processes"]
    os.kill(child, signal.SIGSTOP)
    project.app.tasks["quick"].delay("once")
    worker.wait_for("Task quick")
    cut(project)
    worker.wait_for("Connected to", times=2)
    os.kill(child, signal.SIGKILL)
    project.wait_noted("ran")
    poll_until(lambda: not project.client.exists("unacked", "celery"), "no message to be left", 3)
    assert project.noted("ran") == ["once"]


def test_a_task_that_ends_while_its_worker_stops_runs_once(new_project: NewProject) -> None:
    project = new_project(TASKS, LONG, **LEASE)
    worker = project.worker("-c", "1")
    project.app.tasks["slow"].delay("a", 3)
    project.wait_noted("started")
    worker.stop()
    assert not project.client.exists("unacked", "celery")
    assert project.noted("started") == project.noted("ran") == ["a"]


def test_each_event_of_a_task_is_published_also_while_its_worker_stops(new_project: NewProject) -> None:
    project = new_project(TASKS, LONG, **LEASE)
    subscription = project.client.pubsub(ignore_subscribe_messages=True)
    subscription.psubscribe("/*.celeryev/task.*")
    worker = project.worker("-c", "1", "-E")
    ids = [project.app.tasks["quick"].delay(str(number)).id for number in range(30)]
    ids.append(project.app.tasks["slow"].delay("a", 3).id)
    project.wait_noted("started")
    worker.stop()
    published: list[tuple[str, str]] = []
    wanted = [(each, kind) for each in ids for kind in ("task-received", "task-started", "task-succeeded")]

    def all_published() -> bool:
        while (message := subscription.get_message(timeout=0.2)) is not None:
            events = json.loads(b64decode(json.loads(message["data"])["body"]))
            published.extend((each["uuid"], each["type"]) for each in events)
        return len(published) >= len(wanted)

    poll_until(all_published, f"{len(wanted)} events")
    assert sorted(published) == sorted(wanted)


def test_prefetched_messages_run_after_an_outage(new_project: NewProject, redis_server: RedisServer) -> None:
    """And the running one is not run again."""
    project = new_project(TASKS, {**LONG, "worker_prefetch_multiplier": 3}, **LEASE)
    project.worker("-c", "1")
    project.app.tasks["slow"].delay("a", 6)
    project.wait_noted("started")
    for name in ("b", "c"):
        project.app.tasks["quick"].delay(name)
    poll_until(lambda: len(project.held()) == 3, "all three to be held")
    redis_server.kill()
    redis_server.start()
    project.wait_noted("ran", 3)
    poll_until(lambda: not project.client.exists("unacked"), "all to be acknowledged")
    assert project.noted("started") == ["a"]
    assert sorted(project.noted("ran")) == ["a", "b", "c"]
