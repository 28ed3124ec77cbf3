"""Results: bounded and readable, and they leave room for the outbox."""

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import Mock

import pytest
from celery import chain, chord, group, states
from celery.app.task import Context
from celery.exceptions import ChordError, WorkerLostError
from redis.client import PubSub

from celery_durable import ResultTooLargeError

from .conftest import NewApp
from .poll import poll_until
from .project import environment, run_message, run_task
from .redis_server import RedisServer

LIMIT = 10_000


class Results:
    """An app with tasks that return or raise their argument."""

    def __init__(self, app: Any, client: Any) -> None:
        self.app, self.client = app, client
        self.noted: list[Any] = []

        def give(size: int, *_: Any) -> str:
            return "x" * size

        def fail(size: int, *_: Any) -> None:
            raise ValueError("y" * size)

        def fail_deep(depth: int, *_: Any) -> None:
            if depth:
                fail_deep(depth - 1)
            raise RuntimeError("z" * 100)

        def note(*args: Any) -> None:
            self.noted.append(args)

        for function in (give, fail, fail_deep, note):
            setattr(self, function.__name__, app.task(function, name=function.__name__, shared=False))
        self.ignored = app.task(fail, name="ignored", shared=False, ignore_result=True)
        app.finalize()

    give: Any
    fail: Any
    fail_deep: Any
    note: Any

    def run(self, task: Any, *args: Any, **headers: Any) -> Any:
        """Run a task; returns its result."""
        headers = {"id": "a", "task": task.name, **headers}
        run_task(task, headers, *args)
        return self.stored(headers["id"])

    def stored(self, task_id: str = "a") -> Any:
        return self.app.AsyncResult(task_id)

    def size(self, task_id: str = "a") -> int:
        return int(self.client.strlen(f"celery-task-meta-{task_id}"))

    def run_all(self) -> None:
        """Run the messages of the queue, and those that they publish."""
        while payloads := list(reversed(self.client.lrange("celery", 0, -1))):
            self.client.delete("celery")
            for payload in payloads:
                run_message(self.app, payload)


NewResults = Callable[..., Results]


@pytest.fixture
def new_results(new_app: NewApp, client: Any) -> NewResults:
    def make(conf: dict[str, Any] | None = None, **config: Any) -> Results:
        return Results(new_app(conf, **{"max_result_bytes": LIMIT, **config}), client)

    return make


@pytest.fixture
def results(new_results: NewResults) -> Results:
    return new_results()


# --- Results that are too large ---


def test_a_result_within_the_limit_is_kept(results: Results) -> None:
    assert results.run(results.give, LIMIT - 2).get(timeout=10) == "x" * (LIMIT - 2)


def test_a_result_that_is_too_large_is_the_failure_of_its_task(results: Results) -> None:
    result = results.run(results.give, LIMIT)
    assert result.state == states.FAILURE
    with pytest.raises(ResultTooLargeError, match=rf"a result of {LIMIT + 2} bytes; max_result_bytes is {LIMIT}"):
        result.get(timeout=10)
    assert results.size() < LIMIT


def test_the_state_of_the_task_is_failure(results: Results) -> None:
    assert run_task(results.give, {"id": "a"}, LIMIT) == "FAILURE"


def test_its_errbacks_are_called(results: Results) -> None:
    results.give.apply_async((LIMIT,), link_error=results.note.si("errback"))
    results.run_all()
    assert results.noted == [("errback",)]


def test_an_ignored_result_may_have_any_size(results: Results) -> None:
    assert run_task(results.give, {"id": "a", "ignore_result": True}, 10 * LIMIT) == "SUCCESS"
    assert results.size() == 0


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("extended", [False, True])
def test_large_arguments_cost_no_result(new_results: NewResults, extended: bool, compression: str | None) -> None:
    results = new_results({"result_extended": extended, "result_compression": compression})
    result = results.run(results.give, 7, "a" * 5 * LIMIT)
    assert result.get(timeout=10) == "xxxxxxx"
    assert results.size() <= LIMIT
    assert not extended or result.name == "give"


def test_a_chord_whose_member_returns_too_much_fails(results: Results) -> None:
    header = group(results.give.s(5), results.give.s(LIMIT))
    result = chord(header, results.note.s(), app=results.app).apply_async()
    results.run_all()
    with pytest.raises(ResultTooLargeError):
        result.get(timeout=10)
    assert isinstance(result.result, ChordError)
    assert results.noted == []
    assert max(results.client.memory_usage(key) for key in results.client.scan_iter()) < 2 * LIMIT


class KilledError(BaseException):
    """The process is killed."""


@dataclass(frozen=True)
class Member:
    """A run of a chord's member, which counts it."""

    results: Results
    chord: Any
    index: int

    def counted(self, monkeypatch: pytest.MonkeyPatch, kill: bool = False) -> None:
        """Count it; `kill`: the process is killed after it has claimed the callback, before it publishes it."""
        backend = self.results.app.backend
        request = Context(id=f"m{self.index}", group="g", group_index=self.index, chord=self.chord, task="give")
        with monkeypatch.context() as patch:
            if kill:
                patch.setattr(backend, "_chord_publish_claim_expires", Mock(side_effect=KilledError))
            with pytest.raises(KilledError) if kill else nullcontext():
                backend.on_chord_part_return(request, states.SUCCESS, self.index)


@pytest.fixture
def members(results: Results) -> list[Member]:
    callback = results.note.s().set(task_id="callback")
    results.app.backend.set_chord_size("g", 2)
    return [Member(results, dict(callback), index) for index in range(2)]


def test_the_callback_is_published_by_the_next_run_of_a_member_that_was_killed(
    members: list[Member], results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once: its message may be redelivered before the claim of the run that was killed has expired."""
    first, last = members
    first.counted(monkeypatch)
    last.counted(monkeypatch, kill=True)
    first.counted(monkeypatch)  # it has not claimed the callback: whoever has may be publishing it
    assert results.client.llen("celery") == 0
    last.counted(monkeypatch)
    results.run_all()
    assert results.noted == [([0, 1],)]
    last.counted(monkeypatch)
    assert results.client.llen("celery") == 0
    assert sorted(results.client.scan_iter("*taskset*")) == ["celery-taskset-meta-g.c"], "its mark that it is done"


def test_a_run_whose_claim_was_taken_over_publishes_no_callback(
    members: list[Member], results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was frozen, not killed."""
    first, last = members
    first.counted(monkeypatch)
    ask = results.app.backend._chord_publish_claim_expires

    def frozen(*args: Any) -> Any:
        monkeypatch.setattr(results.app.backend, "_chord_publish_claim_expires", ask)
        last.counted(monkeypatch)
        return ask(*args)

    monkeypatch.setattr(results.app.backend, "_chord_publish_claim_expires", frozen)
    last.counted(monkeypatch)
    assert results.client.llen("celery") == 1


def test_a_chain_whose_link_returns_too_much_fails(new_results: NewResults, recwarn: pytest.WarningsRecorder) -> None:
    results = new_results(max_result_bytes=LIMIT, max_message_bytes=5 * LIMIT)
    result = chain(results.give.si(10 * LIMIT), results.note.s(), app=results.app).apply_async()
    results.run_all()
    assert result.parent.state == states.FAILURE
    assert results.noted == []
    assert not [each for each in recwarn if each.category is RuntimeWarning], "an internal error, for Celery"


def test_a_group_of_many_is_kept_whole(results: Results) -> None:
    """A group's result is a list of ids and grows with their number."""
    saved = group((results.give.si(1) for _ in range(500)), app=results.app).apply_async()
    saved.save(backend=results.app.backend)
    assert len(results.app.GroupResult.restore(saved.id, backend=results.app.backend).results) == 500


# --- Errors ---


def test_an_error_is_cut_and_raised(results: Results) -> None:
    result = results.run(results.fail, 10 * LIMIT, "a" * 10 * LIMIT)
    assert results.size() <= LIMIT
    with pytest.raises(ValueError, match=r"yyy.* …"):
        result.get(timeout=10)
    assert result.state == states.FAILURE
    assert "ValueError" in result.traceback
    assert "…" in result.traceback


def test_a_small_error_is_kept_as_it_is(results: Results) -> None:
    result = results.run(results.fail, 20)
    with pytest.raises(ValueError, match=r"^y{20}$"):
        result.get(timeout=10)
    assert result.traceback.startswith("Traceback (most recent call last)")
    assert "…" not in result.traceback


def test_the_end_of_a_long_traceback_is_kept(results: Results) -> None:
    result = results.run(results.fail_deep, 200, "a" * 10 * LIMIT)
    assert results.size() <= LIMIT
    assert result.traceback.rstrip().endswith("z" * 100)


def test_errors_of_ignored_results_are_small(new_results: NewResults) -> None:
    """160 errors of 600 kB, with their arguments, filled the outbox's Redis."""
    results = new_results({"task_store_errors_even_if_ignored": True, "result_extended": True},
                          max_result_bytes=1 << 20, max_ignored_error_bytes=2000)  # fmt: skip
    for number in range(160):
        results.run(results.ignored, 600_000, "a" * 600_000, id=f"{number}")
    sizes = [results.size(f"{number}") for number in range(160)]
    assert 0 < min(sizes) <= max(sizes) <= 2000
    assert results.client.info("memory")["used_memory_dataset"] < 5_000_000
    with pytest.raises(ValueError, match="yyy"):
        results.stored("7").get(timeout=10)


def test_a_request_says_whether_its_result_is_ignored(new_results: NewResults) -> None:
    results = new_results({"task_store_errors_even_if_ignored": True}, max_ignored_error_bytes=2000)
    results.run(results.fail, 5000, id="ignored", ignore_result=True)
    results.run(results.fail, 3000, id="wanted", ignore_result=False)
    results.run(results.ignored, 3000, id="wanted now", ignore_result=False)
    assert results.size("ignored") <= 2000
    assert results.size("wanted") > 3000
    assert results.size("wanted now") > 3000


def test_an_error_with_odd_arguments_is_cut(results: Results) -> None:
    class OddError(Exception):
        pass

    def odd() -> None:
        raise OddError({"a": ["b" * 10 * LIMIT]}, object(), "\udc80" * 100)

    task = results.app.task(odd, name="odd", shared=False)
    result = results.run(task)
    assert results.size() <= LIMIT
    assert result.state == states.FAILURE
    with pytest.raises(Exception, match="bbb"):
        result.get(timeout=10)


def test_the_error_of_a_chords_member_is_cut(results: Results) -> None:
    result = chord(
        group(results.give.s(5), results.fail.s(50 * LIMIT)), results.note.s(), app=results.app
    ).apply_async()
    results.run_all()
    with pytest.raises(ValueError, match="yyy"):
        result.get(timeout=10)
    assert isinstance(result.result, ChordError)
    assert max(results.client.memory_usage(key) for key in results.client.scan_iter()) < 3 * LIMIT


def test_a_retry_keeps_its_error_cut(results: Results) -> None:
    def again(self: Any) -> None:
        raise self.retry(exc=ValueError("y" * 10 * LIMIT), countdown=1)

    task = results.app.task(again, name="again", bind=True, shared=False)
    assert results.run(task).state == states.RETRY
    assert results.size() <= LIMIT


# --- Room for the outbox ---


def test_results_leave_room_for_the_outbox(
    new_results: NewResults, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    results = new_results(result_memory_share=0.8, max_result_bytes=1 << 20)
    used = redis_server.client.info("memory")["used_memory"]
    redis_server.client.config_set("maxmemory", used + 10_000_000)

    def publish() -> None: ...

    task = results.app.task(publish, name="publish", outbox=True, shared=False)
    # A number is not given: `used` may hold buffers of the test before, which Redis frees meanwhile.
    for number in range(200):
        results.app.backend._checked_at = 0.0  # the memory is checked every few seconds
        if results.run(results.give, 300_000, id=f"{number}").state == states.PENDING:
            break
    assert results.stored("0").get(timeout=10) == "x" * 300_000
    assert f"result of {number} not stored: Redis uses more than result_memory_share of its memory" in caplog.text
    task.apply_async()
    assert redis_server.client.info("memory")["used_memory"] < used + 9_500_000


@pytest.mark.parametrize("state", [states.STARTED, states.RETRY, states.FAILURE, states.SUCCESS, "PROGRESS"])
def test_every_state_is_refused(new_results: NewResults, redis_server: RedisServer, state: str) -> None:
    results = new_results(result_memory_share=0.5)
    redis_server.client.config_set("maxmemory", 1_000_000_000)
    redis_server.client.config_set("maxmemory", redis_server.client.info("memory")["used_memory"] + 100_000)
    results.app.backend.store_result("a", ValueError("a") if state in states.EXCEPTION_STATES else {}, state)
    assert results.size() == 0


def test_without_maxmemory_there_is_room(new_results: NewResults) -> None:
    results = new_results(result_memory_share=0.000001)
    assert results.run(results.give, 5).get(timeout=10) == "xxxxx"


def test_redis_is_asked_at_intervals(results: Results, redis_server: RedisServer) -> None:
    for number in range(20):
        results.run(results.give, 5, id=f"{number}")
    commands = redis_server.client.info("commandstats")
    assert commands["cmdstat_info"]["calls"] <= 2


def test_the_retry_of_a_lost_process_does_not_wait_for_the_results(
    new_results: NewResults, other_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    results = new_results({"result_backend": other_redis.url})
    backend = results.app.backend
    with other_redis.stopped():
        backend.mark_as_retry("a", WorkerLostError("killed"))
    assert "state RETRY of a not stored" in caplog.text
    backend.mark_as_retry("a", WorkerLostError("killed"))
    assert results.stored("a").state == states.RETRY


# --- Publishing ---


def test_publishing_does_not_connect_to_the_results_redis(
    new_results: NewResults, other_redis: RedisServer, redis_server: RedisServer
) -> None:
    results = new_results({"result_backend": other_redis.url})
    with other_redis.stopped():
        before = time.monotonic()
        results.give.apply_async((1,))
        assert time.monotonic() - before < 5
    assert redis_server.client.llen("celery") == 1


def test_a_deleted_result_sends_nothing(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    """If Redis is unavailable the thread would wait for it."""
    promise = group([results.give.s(1)]).apply_async()  # subscribes
    sent: list[Any] = []
    monkeypatch.setattr(PubSub, "execute_command", lambda _, *command: sent.append(command))
    del promise
    gc.collect()
    assert sent == []


def test_a_deleted_result_is_unsubscribed_with_the_next(results: Results) -> None:
    def subscribed() -> set[str]:
        return {channel.removeprefix("celery-task-meta-") for channel in results.client.pubsub_channels()}

    promise = group([results.give.s(1)]).apply_async()
    first = promise[0].id
    poll_until(lambda: first in subscribed(), "the first to be subscribed")
    del promise
    gc.collect()
    second = group([results.give.s(1)]).apply_async()
    poll_until(lambda: second[0].id in subscribed(), "the second to be subscribed")
    poll_until(lambda: first not in subscribed(), "the first to be unsubscribed")


def test_a_caller_that_waits_for_a_result_gets_it(results: Results) -> None:
    """Although publishing does not subscribe to the result."""
    result = results.give.delay(3)
    thread = threading.Timer(0.3, results.run_all)
    thread.start()
    assert result.get(timeout=20) == "xxx"
    thread.join()


# --- Errors that JSON cannot represent ---


def test_an_error_is_cut_in_a_pickle_as_well(new_results: NewResults) -> None:
    results = new_results({"result_serializer": "pickle", "accept_content": ["json", "pickle"]})
    result = results.run(results.fail, 10 * LIMIT, "a" * 10 * LIMIT)
    assert results.size() <= 2 * LIMIT
    with pytest.raises(Exception, match=r"yyy.* …") as error:
        result.get(timeout=10)
    assert type(error.value).__name__ == "ValueError"


# --- The end of a program ---

PROGRAM = """
import gc, sys
from celery import Celery
from celery_durable import Config, install

url, redis, when = sys.argv[1:]
app = Celery("ends", broker=url, backend=url)
install(app, Config(store=url))
results = [app.send_task("task") for _ in range(200)]
try:
    app.ResultSet(results).get(timeout=0.5)
except Exception as error:
    print(type(error).__name__, flush=True)
sys.stdin.readline()
if when == "before":
    del results
    gc.collect()
"""


@pytest.mark.parametrize("when", ["at the end", "before"])
@pytest.mark.parametrize("redis", ["up", "down"])
def test_a_program_that_ends_with_live_results_prints_nothing(other_redis: RedisServer, redis: str, when: str) -> None:
    """The program has waited for each result until its time-out."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, other_redis.url, redis, when],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "TimeoutError\n"
        assert len(other_redis.client.pubsub_channels()) == 200
        with other_redis.stopped() if redis == "down" else nullcontext():
            _, error = program.communicate("\n", timeout=60)
    assert (program.returncode, error) == (0, "")
