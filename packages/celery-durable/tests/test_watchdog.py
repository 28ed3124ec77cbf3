"""A worker that hangs or is deaf exits; one that is busy, slow or without Redis does not."""

import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from celery_durable import Config
from celery_durable.background import Background
from celery_durable.watchdog import EXIT_CODE, Diagnosis, TimeLimits

from .poll import poll_until
from .project import Program, Project
from .redis_server import RedisServer

CONFIG = Config(store="redis://127.0.0.1:1/0")
INTERVAL = CONFIG.watchdog_interval


# --- Diagnosis ---


@dataclass
class Worker:
    """The watchdog's view of a worker."""

    turns: int = 0
    may_block: bool = False
    received: int = 0
    idle: bool = True
    waiting: bool = False

    def diagnosis(self) -> Diagnosis:
        return Diagnosis(
            CONFIG,
            lambda: self.turns,
            lambda: self.may_block,
            lambda: self.received,
            lambda: self.idle,
            lambda: self.waiting,
        )


def looks(seconds: float) -> range:
    return range(int(seconds / INTERVAL))


def test_a_loop_that_runs_is_healthy() -> None:
    worker = Worker()
    diagnosis = worker.diagnosis()
    for _ in looks(5 * CONFIG.hung_after):
        worker.turns += 1
        assert diagnosis.problem() == ""


def test_a_loop_that_does_not_run_is_hung_after_a_while() -> None:
    diagnosis = Worker(turns=7).diagnosis()
    assert [diagnosis.problem() for _ in looks(CONFIG.hung_after)] == [""] * len(looks(CONFIG.hung_after))
    assert diagnosis.problem() == f"its event loop has been blocked for {CONFIG.hung_after:g} s"


def test_an_iteration_in_between_restarts_the_count() -> None:
    worker = Worker()
    diagnosis = worker.diagnosis()
    for _ in range(3):
        assert not any(diagnosis.problem() for _ in looks(CONFIG.hung_after))
        worker.turns += 1


def test_a_loop_that_waits_for_redis_has_its_time_from_when_redis_is_back() -> None:
    worker = Worker(may_block=True)
    diagnosis = worker.diagnosis()
    assert not any(diagnosis.problem() for _ in looks(3 * CONFIG.hung_after))
    worker.may_block = False
    said = [diagnosis.problem() for _ in looks(CONFIG.hung_after)]
    assert not any(said[:-1])
    assert said[-1]


def test_idle_while_messages_wait_is_deaf_after_a_while() -> None:
    worker = Worker(waiting=True)
    diagnosis = worker.diagnosis()
    said = []
    for _ in looks(CONFIG.deaf_after + INTERVAL):
        worker.turns += 1
        said.append(diagnosis.problem())
    assert not any(said[:-1])
    assert said[-1] == f"it has been idle for {CONFIG.deaf_after:g} s and took none of the waiting messages"


def test_a_worker_that_is_busy_or_idle_or_takes_messages_is_not_deaf() -> None:
    for worker in (Worker(idle=False, waiting=True), Worker(waiting=False)):
        diagnosis = worker.diagnosis()
        for _ in looks(3 * CONFIG.deaf_after):
            worker.turns += 1
            assert diagnosis.problem() == ""
    worker = Worker(waiting=True)
    diagnosis = worker.diagnosis()
    for _ in looks(3 * CONFIG.deaf_after):
        worker.turns += 1
        worker.received += 1
        assert diagnosis.problem() == ""


# --- Time limits ---


class Running:
    def __init__(self, of_message: float | None, of_task: float | None) -> None:
        self.time_limits, self.task = [of_message, None], SimpleNamespace(time_limit=of_task)


def test_a_task_exceeds_the_limit_of_its_message_or_its_own() -> None:
    short, long, unlimited = Running(10, 3600), Running(None, 20), Running(None, None)
    running: list[Any] = [short, long, unlimited]
    limits = TimeLimits(INTERVAL, lambda: running)
    assert not any(limits.exceeded() for _ in looks(10 + INTERVAL))
    assert limits.exceeded() == [(short, 10)]
    running.remove(short)
    assert not any(limits.exceeded() for _ in looks(20 - 10 - INTERVAL))
    assert limits.exceeded() == [(long, 20)]


def test_the_time_of_a_task_that_runs_again_starts_again() -> None:
    again = Running(10, None)
    running: list[Any] = [again]
    limits = TimeLimits(INTERVAL, lambda: running)
    for _ in range(3):
        assert not any(limits.exceeded() for _ in looks(10))
        running.clear()
        assert limits.exceeded() == []
        running.append(again)


# --- Threads ---


def test_a_thread_continues_after_an_error_and_logs_it(caplog: pytest.LogCaptureFixture) -> None:
    """A thread that ended at its first error would leave the worker unwatched."""
    calls: list[int] = []

    def look() -> None:
        calls.append(1)
        if len(calls) < 4:
            raise RuntimeError(f"error {len(calls)}")

    with caplog.at_level(logging.ERROR):
        thread = Background("looker", 0.01, look)
        poll_until(lambda: len(calls) > 5, "it to continue", timeout=30)
        thread.stop(timeout=10)
    assert [record.getMessage() for record in caplog.records] == ["looker failed; it is tried again in 0.01 s"] * 3
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == [
        "error 1",
        "error 2",
        "error 3",
    ]


def test_a_thread_calls_at_once_and_not_after_its_stop() -> None:
    calls: list[float] = []
    thread = Background("caller", 3600, lambda: calls.append(time.monotonic()))
    poll_until(lambda: calls, "the first call", timeout=30)
    thread.stop(timeout=10)
    assert len(calls) == 1
    assert "caller" not in [each.name for each in threading.enumerate()]


def test_a_function_may_say_when_its_next_call_is() -> None:
    calls: list[float] = []

    def call() -> float:
        calls.append(1)
        return 0.01 if len(calls) < 4 else 3600

    thread = Background("caller", 7200, call)
    poll_until(lambda: len(calls) == 4, "the fourth call", timeout=30)
    thread.stop(timeout=10)


def test_a_stop_waits_for_a_call_that_is_under_way() -> None:
    began, may_end = threading.Event(), threading.Event()

    def slow() -> None:
        began.set()
        may_end.wait(30)

    thread = Background("slow", 3600, slow)
    assert began.wait(30)
    thread.stop()
    assert "slow" in [each.name for each in threading.enumerate()], "without a time-out it does not wait"
    may_end.set()
    thread.stop(timeout=30)
    assert "slow" not in [each.name for each in threading.enumerate()]


# --- Workers ---

COMMANDS = """
from celery.worker.control import control_command


@control_command()
def hang(state):
    time.sleep(3600)


@control_command()
def go_deaf(state):
    qos = state.consumer.task_consumer.channel.qos
    for number in range(100):
        qos._delivered[f"leaked {number}"] = None


@control_command()
def break_the_watchdog(state):
    def fail():
        raise RuntimeError("odd")

    type(durable).broker = property(lambda self: fail())


@app.task(name="quick", shared=False)
def quick():
    note("quick")
"""

SOON: dict[str, Any] = {"hung_after": 2, "deaf_after": 2}
WORKERS = {
    "hung prefork": ("-P", "prefork"),
    "hung threads": ("-P", "threads"),
    "deaf": (),
    "deaf and unwatched": (),
    "well": (),
}


class Watched(NamedTuple):
    project: Project
    workers: dict[str, Program]

    def send(self, queue: str) -> None:
        self.project.app.send_task("quick", queue=queue)


@pytest.fixture(scope="module")
def watched(module_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Each consumes a queue of its name; the first four get the fault in their name once all are ready."""
    with (
        Project(tmp_path_factory.mktemp("watched"), module_redis.url, COMMANDS, **SOON).open() as project,
        Project(tmp_path_factory.mktemp("other"), module_redis.url, COMMANDS, watchdog=False, **SOON).open() as other,
    ):
        workers = {
            name: (other if "unwatched" in name else project).start(
                name, "worker", "-l", "INFO", "-n", node_of(name), "-c", "1", "-Q", name, *options
            )
            for name, options in WORKERS.items()
        }
        for worker in workers.values():
            worker.wait_for("ready.")
        control = project.app.control
        control.broadcast("hang", destination=[node_of("hung prefork"), node_of("hung threads")])
        control.broadcast("go_deaf", destination=[node_of("deaf"), node_of("deaf and unwatched")])
        watched = Watched(project, workers)
        for _ in range(3):
            watched.send("deaf")
            watched.send("deaf and unwatched")
        yield watched


def node_of(name: str) -> str:
    return f"{name.replace(' ', '-')}@test"


@pytest.mark.parametrize("name", ["hung prefork", "hung threads"])
def test_a_worker_whose_loop_does_not_run_exits(watched: Watched, name: str) -> None:
    assert watched.workers[name].process.wait(60) == EXIT_CODE
    assert "watchdog: this worker exits: its event loop has been blocked for " in watched.workers[name].log


def test_a_worker_that_takes_no_message_exits(watched: Watched) -> None:
    assert watched.workers["deaf"].process.wait(60) == EXIT_CODE
    assert "and took none of the waiting messages" in watched.workers["deaf"].log


def test_a_worker_that_waits_for_redis_keeps_running(watched: Watched, module_redis: RedisServer) -> None:
    with module_redis.frozen():
        time.sleep(2.5 * SOON["hung_after"])
    watched.send("well")
    watched.project.wait_noted("quick", 1)
    assert watched.workers["well"].alive
    assert "REMAP_SIGTERM is not SIGQUIT in the environment" in watched.workers["well"].log


def test_a_watchdog_that_fails_is_tried_again_and_so_are_its_siblings(watched: Watched) -> None:
    watched.project.app.control.broadcast("break_the_watchdog", destination=["well@test"])
    watched.workers["well"].wait_for("watchdog failed; it is tried again in 0.5 s")
    watched.workers["well"].wait_for("registration failed; it is tried again in 5 s")
    watched.send("well")
    watched.project.wait_noted("quick", 2)


def test_a_watchdog_that_is_switched_off_ends_no_worker(watched: Watched) -> None:
    """It has been deaf since the tests before."""
    assert watched.workers["deaf and unwatched"].alive
    assert watched.project.client.llen("deaf and unwatched")
