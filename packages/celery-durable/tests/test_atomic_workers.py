"""Real workers with the atomic transport: kills, restarts of Redis, stock workers beside them."""

import json
import os
import signal
import time
from argparse import Namespace
from base64 import b64decode
from typing import Any

import pytest
from kombu import Connection, Consumer, Queue

from celery_durable import delayed
from celery_durable.dead_letters import Reason

from .conftest import NewProject
from .poll import poll_until
from .project import Project
from .redis_server import RedisServer
from .test_atomic import LEASE
from .test_transport import letters

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
STEPS = {"broker_transport_options": {"priority_steps": list(range(10))}}
LONG = {**STEPS, "task_time_limit": 60, "task_soft_time_limit": 50}


def of_workers(project: Project, **kind: str) -> list[str]:
    """The ids of the workers' connections to the broker; those of tasks and of tests have another name."""
    return [each["id"] for each in project.client.client_list(**kind) if each["name"].startswith("celery-worker:")]


def cut(project: Project) -> None:
    """Close the workers' connections to the broker, and not those of the tasks."""
    for connection in of_workers(project):
        project.client.client_kill_filter(_id=connection)


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


HELD = """
import time

@app.task(name="count", shared=False)
def count(number):
    time.sleep(0.5)
    note("held", str(durable.broker.hlen("unacked")))
"""


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
