"""A worker: the outcome of each task and its message, and the worker's own registration and heartbeat.

One worker for all tests; each looks at what is its own.
"""

import json
import re
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from celery import states

from celery_durable.dead_letters import Letter, Reason

from . import malformed
from .poll import poll_until
from .project import Program, Project
from .redis_server import RedisServer

TASKS = """
import signal

from celery.exceptions import Ignore, Reject


@app.task(name="add", shared=False)
def add(a, b):
    return a + b


@app.task(name="fail", shared=False)
def fail():
    raise RuntimeError("of mine")


def task(**options):
    return app.task(bind=True, shared=False, outbox=True, **options)


@task(name="retried", autoretry_for=(ZeroDivisionError,), max_retries=1, retry_backoff=False)
def retried(self):
    note("retried", self.request.id)
    1 / 0


@task(name="slow", time_limit=1, soft_time_limit=0.9, autoretry_for=())
def slow(self):
    note("slow", self.request.id)
    try:
        time.sleep(30)
    except Exception:
        time.sleep(30)


@task(name="too_slow", soft_time_limit=0.5)
def too_slow(self):
    note("too_slow", self.request.id)
    time.sleep(30)


@task(name="deadly", max_retries=1)
def deadly(self):
    note("deadly", self.request.id)
    os.kill(os.getpid(), signal.SIGKILL)


@task(name="deadly_once")
def deadly_once(self):
    note("deadly_once", self.request.id)
    if durable.store.incr("deaths") == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return "lives"


@task(name="deadly_early", acks_late=False, max_retries=1)
def deadly_early(self):
    note("deadly_early", self.request.id)
    os.kill(os.getpid(), signal.SIGKILL)


@task(name="rejected")
def rejected(self):
    raise Reject("because", requeue=False)


@task(name="rejected_once")
def rejected_once(self):
    note("rejected_once", self.request.id)
    if len(durable.store.lrange("noted:rejected_once", 0, -1)) == 1:
        raise Reject("not yet", requeue=True)


@task(name="ignored")
def ignored(self):
    raise Ignore


@task(name="long")
def long(self):
    note("long", self.request.id)
    time.sleep(4)


@task(name="quits")
def quits(self):
    raise SystemExit(3)
"""


class Running(NamedTuple):
    project: Project
    worker: Program

    def send(self, name: str, *args: Any, **options: Any) -> Any:
        return self.project.app.send_task(name, args, **options)

    def letters(self, task: str | None = None) -> list[Letter]:
        durable = self.project.app.durable
        with durable.raw_broker() as client:
            return [letter for letter in durable.dead_letters.read(client) if task in (None, letter.task)]

    def letter(self, task: str) -> Letter:
        """The one dead letter of a task; waits for it."""
        poll_until(lambda: self.letters(task), f"a dead letter of {task}")
        (letter,) = self.letters(task)
        return letter

    def in_outbox(self, task_id: str) -> bool:
        return bool(self.project.client.hexists("celery-durable:outbox", task_id))

    def wait_state(self, task_id: str, state: str) -> None:
        result = self.project.app.AsyncResult(task_id)
        poll_until(lambda: result.state == state, f"{task_id} to be {state}")

    def wait_ended(self, task_id: str) -> None:
        poll_until(lambda: not self.in_outbox(task_id), f"the outbox entry of {task_id} to end")


@pytest.fixture(scope="module")
def running(module_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("worker")
    heartbeat = folder / "heartbeat"
    with Project(
        folder, module_redis.url, TASKS, heartbeat_file=heartbeat, max_message_bytes=100_000
    ).open() as project:
        running = Running(project, project.worker("-c", "5", REMAP_SIGTERM="SIGQUIT"))
        for name in SLOW:
            running.send(name, task_id=name)
        running.project.client.lpush("celery", json.dumps(unknown_task()))
        yield running


# Tasks that take seconds: all are published before the first test.
SLOW = ("deadly", "deadly_early", "too_slow", "slow")


def unknown_task() -> dict[str, Any]:
    """A message that has waited in its queue for two minutes."""
    headers = {"task": "of tomorrow", "id": "unknown", "published_at": time.time() - 120}
    return malformed.message(headers=headers)


# --- How tasks end ---


def test_a_task_that_succeeds(running: Running) -> None:
    assert running.send("add", 1, 2).get(timeout=30) == 3


def test_an_error_without_a_retry_is_no_dead_letter(running: Running) -> None:
    result = running.send("fail")
    with pytest.raises(RuntimeError, match="of mine"):
        result.get(timeout=30)
    assert running.letters("fail") == []


def test_retries_that_are_used_up_make_a_dead_letter(running: Running) -> None:
    result = running.send("retried", task_id="retried")
    letter = running.letter("retried")
    assert (letter.reason, letter.error) == (Reason.RETRIES_EXHAUSTED, "ZeroDivisionError: division by zero")
    assert (letter.task_id, letter.queue) == ("retried", "celery")
    assert running.project.noted("retried") == ["retried"] * 2
    running.wait_ended("retried")
    assert result.state == states.FAILURE


def test_the_hard_time_limit_makes_a_dead_letter(running: Running) -> None:
    letter = running.letter("slow")
    assert (letter.reason, letter.error) == (Reason.TIME_LIMIT, "1 s")
    running.wait_ended("slow")
    running.wait_state("slow", states.FAILURE)
    assert running.project.noted("slow") == ["slow"]


def test_the_soft_time_limit_is_tried_again_three_times(running: Running) -> None:
    letter = running.letter("too_slow")
    assert letter.reason == Reason.RETRIES_EXHAUSTED
    assert letter.error.startswith("SoftTimeLimitExceeded")
    assert running.project.noted("too_slow") == ["too_slow"] * 4
    running.wait_ended("too_slow")


@pytest.mark.parametrize("name", ["deadly", "deadly_early"])
def test_a_task_that_kills_its_process_each_time_makes_a_dead_letter(running: Running, name: str) -> None:
    poll_until(lambda: not running.in_outbox(name), "its outbox entry to end", timeout=90)
    # Once more where both processes die at once: billiard gives a job whose acceptance it has not read yet to another
    # process (Pool._join_exited_workers).
    assert running.project.noted(name) in ([name] * 2, [name] * 3), running.worker.log
    if name == "deadly":
        letter = running.letter(name)
        assert letter.reason == Reason.WORKER_LOST
        assert "SIGKILL" in letter.error
    running.wait_state(name, states.FAILURE)


def test_a_task_that_kills_its_process_once_runs_again(running: Running) -> None:
    assert running.send("deadly_once", task_id="deadly once").get(timeout=60) == "lives"
    assert running.project.noted("deadly_once") == ["deadly once"] * 2
    running.wait_ended("deadly once")
    assert running.letters("deadly_once") == []


def test_a_rejected_message_is_a_dead_letter(running: Running) -> None:
    result = running.send("rejected", task_id="rejected")
    letter = running.letter("rejected")
    assert (letter.reason, letter.error) == (Reason.REJECTED, "because")
    assert json.loads(letter.payload)["headers"]["id"] == "rejected"
    running.wait_ended("rejected")
    poll_until(lambda: result.state == states.FAILURE, "its failure")


def test_a_message_that_is_rejected_to_its_queue_runs_again(running: Running) -> None:
    running.send("rejected_once", task_id="rejected once")
    running.project.wait_noted("rejected_once", 2)
    running.wait_ended("rejected once")
    assert running.letters("rejected_once") == []


def test_a_task_with_nothing_to_do_leaves_nothing(running: Running) -> None:
    running.send("ignored", task_id="ignored")
    running.wait_ended("ignored")
    assert running.letters("ignored") == []


def test_an_expired_task_ends_its_entry(running: Running) -> None:
    result = running.send("add", 1, 2, task_id="expired", expires=-5)
    poll_until(lambda: result.state == states.REVOKED, "it to be revoked")
    assert running.letters("add") == []


def test_a_task_that_is_terminated_ends_its_entry(running: Running) -> None:
    result = running.send("long", task_id="terminated")
    running.project.wait_noted("long", 1)
    running.project.app.control.revoke("terminated", terminate=True)
    poll_until(lambda: result.state == states.REVOKED, "it to be revoked")
    running.wait_ended("terminated")
    assert running.letters("long") == []


def test_an_exit_is_a_lost_process(running: Running) -> None:
    result = running.send("quits", task_id="quits")
    poll_until(lambda: result.state in (states.RETRY, states.FAILURE), "its end")
    running.project.app.control.revoke("quits")


# --- Odd messages ---


def test_each_kind_of_malformed_message_is_a_dead_letter_or_runs(running: Running) -> None:
    kinds, logged = malformed.kinds(100_000), len(running.worker.log)
    running.project.client.lpush("celery", *kinds.values())
    expected = {payload for name, payload in kinds.items() if name not in malformed.READABLE}

    def found() -> list[Letter]:
        return [each for each in running.letters() if each.reason in (Reason.MALFORMED, Reason.TOO_LARGE)]

    poll_until(lambda: len(found()) >= len(expected), f"{len(expected)} dead letters")
    by_payload = {payload: name for name, payload in kinds.items()}
    assert sorted(by_payload.get(each.payload, "not as it came") for each in found()) == sorted(
        name for name in kinds if name not in malformed.READABLE
    ), "byte for byte"
    assert all(each.queue == "celery" and each.error for each in found())
    assert running.send("add", 2, 2).get(timeout=30) == 4
    poll_until(lambda: not running.project.client.hlen("unacked"), "nothing to be held")
    records = [record for record in re.split(r"(?m)^(?=\[)", running.worker.log[logged:]) if "Traceback" in record]
    slow = re.compile("WorkerLostError|TimeLimitExceeded|of tomorrow")  # those of `running`
    assert [record for record in records if not slow.search(record)] == []


def test_a_malformed_message_with_the_id_of_an_outbox_entry_does_not_end_it(running: Running) -> None:
    """Its publisher may be anyone."""
    running.project.app.tasks["retried"].apply_async(task_id="claimed", countdown=5)
    poll_until(lambda: running.in_outbox("claimed"), "the entry")
    before = len(running.letters())
    for headers in (
        {"id": "claimed", "outbox_publication": 1, "retries": "many"},
        {"id": "claimed", "outbox_publication": 99, "eta": 7},
        {"id": "claimed", "outbox_publication": "1"},
    ):
        running.project.client.lpush("celery", json.dumps(malformed.message(headers=headers)))
    running.project.client.lpush(
        "celery", json.dumps(malformed.message([["x" * 100_000, 1], {}, {}], headers={"id": "claimed"}))
    )
    poll_until(lambda: len(running.letters()) == before + 4, "4 dead letters")
    assert running.in_outbox("claimed")
    running.send("add", 1, 2, task_id="claimed").get(timeout=30)
    assert running.in_outbox("claimed"), "nor does a foreign task of that id"
    running.project.app.control.revoke("claimed")


def test_an_unknown_task_is_held_back_and_then_a_dead_letter(running: Running) -> None:
    """Its time in the queue, two minutes, does not count."""
    letter = running.letter("of tomorrow")
    assert letter.reason == Reason.UNKNOWN_TASK
    assert letter.error == "unknown to the workers for 4 s"
    assert 4 <= json.loads(letter.payload)["headers"]["unknown_for"] < 6
    assert running.worker.log.count("unknown task 'of tomorrow'") == 8, "4 s, in steps of 0.5 s"


# --- Registration, connections, heartbeat ---


def test_its_registration_names_its_queues(running: Running) -> None:
    registered = json.loads(running.project.client.hget("celery-durable:workers", "worker@test"))
    assert (registered["queues"], registered["concurrency"]) == (["celery"], 5)
    assert abs(registered["heartbeat"] - time.time()) < 30


def test_its_connections_name_it(running: Running) -> None:
    names = {each["name"] for each in running.project.client.client_list()}
    assert "celery-worker:worker@test:celery" in names


def test_its_heartbeat_is_touched(running: Running) -> None:
    heartbeat = running.project.folder / "heartbeat"
    heartbeat.unlink()
    poll_until(heartbeat.exists, "the file to be touched")


def test_the_worker_is_the_one_that_was_started(running: Running) -> None:
    """No earlier test has ended it."""
    assert running.worker.alive
    assert running.worker.log.count("ready.") == 1
    assert "Unrecoverable error" not in running.worker.log
    assert "REMAP_SIGTERM" not in running.worker.log, "it is set"


def test_a_worker_that_stops_returns_what_it_held(running: Running) -> None:
    project = running.project
    poll_until(lambda: not project.client.hlen("unacked"), "nothing to be held")
    project.client.delete("noted:long")
    project.app.tasks["retried"].apply_async(task_id="stopped eta", countdown=5)
    poll_until(lambda: project.client.hlen("unacked") == 1, "it to be held")
    for number in range(2):
        running.send("long", task_id=f"stopped {number}")
    project.wait_noted("long", 2)
    poll_until(lambda: project.client.hlen("unacked") == 3, "3 messages to be held")
    began = time.monotonic()
    running.worker.stop()
    assert time.monotonic() - began < 20, "Config.stop_grace_period"
    assert not project.client.exists("unacked")
    waiting = [json.loads(each)["headers"]["id"] for each in project.client.lrange("celery", 0, -1)]
    assert sorted(waiting) == ["stopped 0", "stopped 1", "stopped eta"]
    assert not project.client.hexists("celery-durable:workers", "worker@test")
