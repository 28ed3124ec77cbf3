"""The producer: patterns and their errors, pacing on a simulated clock, a deep queue, an unreachable Redis."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from threading import Event
from typing import IO

import pytest
from kombu.exceptions import OperationalError
from redis import RedisError

import producer
from celery_app import app, durable
from celery_durable import BatchPublishError
from producer import MAX_LATE, PATTERNS, TOGETHER, Message, Producer, chosen_pattern, main
from settings import settings
from stack.poll import poll_until
from tests.redis_server import RedisServer, free_port
from traffic import Pattern, Sending, TrafficError, load_patterns

ADD = {"task": "tasks.basic.add", "args": [[1, 2], [3, 4], [5, 6]]}
SEARCH = {"task": "tasks.search.search", "args": [["json"], ["socket"]]}


def pattern(duration: str | None = None, seed: int = 1, **send: dict[str, object]) -> Pattern:
    return Pattern.model_validate({"seed": seed, "send": send} | ({"for": duration} if duration else {}))


# --- Patterns ---


def test_the_built_in_patterns() -> None:
    patterns = load_patterns(PATTERNS)
    assert set(patterns) == {"steady", "flood", "bursts", "failures", "idle"}
    assert patterns["idle"].send == {}
    for name in set(patterns) - {"idle"}:
        assert "high" in {sending.routed for sending in patterns[name].send.values()}, (
            "queries continue in every pattern"
        )
    assert {sending.routed for sending in patterns["steady"].send.values()} == {"high", "low"}
    low = sum(sending.rate for sending in patterns["flood"].send.values() if sending.routed == "low")
    assert low * 60 >= 5000, "a flood of a minute is thousands of messages"


def test_all_keys(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(
        '[x]\nfor = "1.5m"\nseed = 7\n[x.send.a]\ntask = "tasks.basic.add"\nrate = 2\nargs = [[1, 2]]\nbatch = 3\n'
        'queue = "high"\npriority = 0\n'
    )
    loaded = load_patterns(tmp_path / "p.toml")["x"]
    assert (loaded.duration, loaded.seed) == (90, 7)
    sending = loaded.send["a"]
    assert (sending.task, sending.rate, sending.args, sending.batch) == ("tasks.basic.add", 2, [[1, 2]], 3)
    assert (sending.queue, sending.routed, sending.priority) == ("high", "high", 0)


VALID = {"task": '"tasks.basic.add"', "rate": "1", "args": "[[1, 2]]"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"task": '"tasks.basic.ad"'},
            r"x.send.a.task: no such task; choose one of .*tasks.basic.add,.*'tasks.basic.ad'$",
        ),
        ({"task": '"celery.backend_cleanup"'}, r"x.send.a.task: no such task; .*; it is 'celery.backend_cleanup'$"),
        ({"task": None}, r"x.send.a.task: is missing$"),
        ({"rate": None}, r"x.send.a.rate: is missing$"),
        ({"rate": "0"}, r"x.send.a.rate: should be greater than 0; it is 0$"),
        ({"rate": "10001"}, r"x.send.a.rate: should be less than or equal to 10000; it is 10001$"),
        ({"rate": '"5/s"'}, r"x.send.a.rate: should be a valid number; it is '5/s'$"),
        ({"rate": "nan"}, r"x.send.a.rate: should be a finite number; it is nan$"),
        ({"rate": "true"}, r"x.send.a.rate: should be a valid number; it is True$"),
        ({"batch": "0"}, r"x.send.a.batch: should be greater than or equal to 1; it is 0$"),
        ({"queue": '"hihg"'}, r"x.send.a.queue: no such queue; choose one of high, low; it is 'hihg'$"),
        ({"priority": "10"}, r"x.send.a.priority: should be less than or equal to 9; it is 10$"),
        ({"priority": "-1"}, r"x.send.a.priority: should be greater than or equal to 0; it is -1$"),
        ({"args": "[1, 2]"}, r"x.send.a.args: must be lists of arguments, like \[\[1, 2\], .*; it is \[1, 2\]$"),
        ({"args": "[]"}, r"x.send.a.args: must be lists of arguments, .*; it is \[\]$"),
        ({"args": "[[1]]"}, r"x.send.a.args: tasks.basic.add cannot be called with \[1\]: .*'y'; it is \[\[1\]\]$"),
        ({"args": None}, r"x.send.a.args: tasks.basic.add cannot be called with \[\]: "),
        ({"rat": "1"}, r"x.send.a.rat: unknown key; choose one of task, rate, args, batch, queue, priority$"),
    ],
)
def test_a_mistake_in_what_is_sent(change: dict[str, str | None], message: str, tmp_path: Path) -> None:
    lines = [f"{key} = {value}" for key, value in {**VALID, **change}.items() if value is not None]
    (tmp_path / "p.toml").write_text("\n".join(["[x.send.a]", *lines]))
    with pytest.raises(TrafficError) as raised:
        load_patterns(tmp_path / "p.toml")
    assert re.match(rf"p\.toml: {message}", str(raised.value))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[x]\nfor = "5 min"', r"x.for: must be a number and s, m or h, like 60s, 5m or 1h; it is '5 min'$"),
        ("[x]\nfor = 60", r"x.for: must be a number and s, m or h, like 60s, 5m or 1h; it is 60$"),
        ('[x]\nseed = "a"', r"x.seed: should be a valid integer; it is 'a'$"),
        ("[x]\nspeed = 1", r"x.speed: unknown key; choose one of for, seed, send$"),
        ("x = 1", r"x: must be a table; it is 1$"),
        ("[x]\nsend = 1", r"x.send: must be a table; it is 1$"),
        ("[x.send]\na = 1", r"x.send.a: must be a table; it is 1$"),
        ("[x]\ny = \n[z]", r"not TOML: .*line 2"),
        (None, r"cannot be read: No such file or directory; it is /.*/p.toml$"),
    ],
)
def test_a_mistake_in_a_pattern(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "p.toml").write_text(text)
    with pytest.raises(TrafficError) as raised:
        load_patterns(tmp_path / "p.toml")
    assert re.match(rf"p\.toml: {message}", str(raised.value))
    assert "\n" not in str(raised.value)


def test_the_command_line_overrides_the_environment_and_that_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRAFFIC", "FOR", "SEED"):
        monkeypatch.delenv(name, raising=False)
    name, chosen = chosen_pattern([])
    assert (name, chosen.duration, chosen.seed) == ("steady", None, 1)
    monkeypatch.setenv("TRAFFIC", "flood")
    monkeypatch.setenv("FOR", "1.5m")
    monkeypatch.setenv("SEED", "5")
    name, chosen = chosen_pattern([])
    assert (name, chosen.duration, chosen.seed) == ("flood", 90, 5)
    name, chosen = chosen_pattern(["--traffic", "idle", "--for", "2h", "--seed", "6"])
    assert (name, chosen.duration, chosen.seed) == ("idle", 7200, 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--traffic", "stedy", "--for", "1s"],
            "no 'stedy' in traffic.toml; choose one of steady, flood, bursts, failures, idle",
        ),
        (["--for", "60"], "FOR: must be a number and s, m or h, like 60s, 5m or 1h; it is '60'"),
        (["--for", "0s"], "FOR: must be a number and s, m or h, like 60s, 5m or 1h; it is '0s'"),
        (["--seed", "x", "--for", "1s"], "SEED: must be an integer; it is 'x'"),
    ],
)
def test_a_mistake_in_an_option_exits_with_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_crash_exits_with_1(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def crash(_: Producer) -> None:
        raise RuntimeError("no such key")

    monkeypatch.setattr(Producer, "run", crash)
    monkeypatch.setattr("producer.refuse_dangerous_settings", lambda _: None)
    monkeypatch.setattr(settings, "metrics_port", None)
    assert main(["--for", "1s"]) == 1
    assert "no such key" in caplog.text


# --- Pacing, on a clock that moves only when the producer sleeps or publishes ---


@dataclass
class World:
    """A simulated clock and Redis, in seconds since the start."""

    heartbeat: Path
    now: float = 0.0
    cost: float = 0.0  # of each message
    away: tuple[float, float] = (0.0, 0.0)  # from, until
    hangs: float = 0.0  # a publish waits so long before it fails
    refused: list[object] | None = None  # the arguments of messages that are refused
    depths: dict[str, int] = field(default_factory=dict)
    sent: list[tuple[float, str, list[object]]] = field(default_factory=list)
    tried: list[tuple[float, str]] = field(default_factory=list)  # time, task id
    naps: int = 0
    beats: list[float] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        self.naps += 1
        self.now += seconds
        if self.heartbeat.exists():
            self.heartbeat.unlink()
            self.beats.append(self.now)

    def publish(self, messages: list[Message]) -> None:
        self.tried.extend((self.now, message.task_id) for message in messages)
        if self.away[0] <= self.now < self.away[1]:
            self.now += self.hangs
            if self.now < self.away[1]:
                raise OperationalError("Connection refused")
        self.now += self.cost * len(messages)
        refused = {each.task_id: "refused" for each in messages if each.args == self.refused}
        self.sent.extend((self.now, each.sending.task, each.args) for each in messages if each.task_id not in refused)
        if refused:
            raise BatchPublishError(refused, [], [])

    def look(self, queues: Iterable[str]) -> dict[str, int]:
        return {queue: self.depths.get(queue, 0) for queue in queues}

    def run(self, sending: Pattern) -> Producer:
        made = Producer(sending, clock=lambda: self.now, sleep=self.sleep, depths=self.look, publish=self.publish)
        made.run()
        made.finish()
        return made

    def times(self, task: str) -> list[float]:
        return [when for when, name, _ in self.sent if name == task]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    made = World(tmp_path / "heartbeat")
    monkeypatch.setattr(settings, "run_dir", tmp_path)
    return made


def test_the_seed_decides_tasks_and_arguments(world: World) -> None:
    def messages(seed: int) -> list[tuple[str, list[object]]]:
        world.sent, world.now = [], 0.0
        world.run(pattern("30s", seed, queries={**SEARCH, "rate": 3}, sums={**ADD, "rate": 7}))
        return [(task, args) for _, task, args in world.sent]

    first = messages(1)
    assert len(first) == 30 * 10
    assert messages(1) == first
    assert messages(2) != first
    assert [task for task, _ in messages(2)] == [task for task, _ in first]


def test_a_stream_draws_the_same_whatever_runs_beside_it(world: World) -> None:
    world.run(pattern("10s", sums={**ADD, "rate": 5}))
    alone = [args for _, _, args in world.sent]
    world.sent, world.now = [], 0.0
    world.run(pattern("10s", other={**SEARCH, "rate": 50}, sums={**ADD, "rate": 5}))
    assert [args for _, task, args in world.sent if task == ADD["task"]] == alone


@pytest.mark.parametrize("rate", [0.1, 3, 300])
def test_each_message_is_sent_when_it_is_due(world: World, rate: float) -> None:
    world.run(pattern("60s", sums={**ADD, "rate": rate}))
    assert world.times("tasks.basic.add") == pytest.approx([i / rate for i in range(round(60 * rate))], abs=1e-6)


def test_a_batch_is_sent_at_once_and_the_rate_is_kept(world: World) -> None:
    world.run(pattern("60s", sums={**ADD, "rate": 10, "batch": 200}))
    assert world.times("tasks.basic.add") == pytest.approx([0.0] * 200 + [20.0] * 200 + [40.0] * 200)


def test_publishing_takes_time_and_the_rate_is_kept(world: World) -> None:
    world.cost = 0.002
    world.run(pattern("60s", sums={**ADD, "rate": 300}))
    assert len(world.sent) == 60 * 300


def test_a_stream_beyond_the_possible_rate_does_not_starve_the_others(world: World) -> None:
    world.cost = 0.0002  # 5000 messages a second
    world.run(pattern("10s", sums={**ADD, "rate": 10_000, "batch": 500}, queries={**SEARCH, "rate": 10}))
    queries = world.times("tasks.search.search")
    assert queries == pytest.approx([i / 10 for i in range(100)], abs=2 * TOGETHER * world.cost)
    assert len(world.sent) == pytest.approx(50_000, rel=0.01)


def test_a_long_pause_is_not_followed_by_a_burst_of_all_missed_messages(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sleep(seconds: float) -> None:
        stall = 300 if world.now < 10 <= world.now + seconds else 0
        world.now += seconds + stall

    monkeypatch.setattr(world, "sleep", sleep)
    made = world.run(pattern("330s", sums={**ADD, "rate": 100}))
    assert len(world.sent) == pytest.approx(30 * 100, abs=2)
    assert made.unpublished.total() == 0


def test_a_short_pause_is_caught_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def sleep(seconds: float) -> None:
        world.now += seconds + (MAX_LATE - 1 if world.now < 10 <= world.now + seconds else 0)

    monkeypatch.setattr(world, "sleep", sleep)
    world.run(pattern("30s", sums={**ADD, "rate": 100}))
    assert len(world.sent) == 30 * 100


def test_idle_sends_nothing_rests_and_is_healthy(world: World) -> None:
    world.run(pattern("60s"))
    assert world.sent == []
    assert world.naps <= 60 * 2 + 1
    assert max(b - a for a, b in zip([0.0, *world.beats], world.beats, strict=False)) < 5


def test_a_publish_has_queue_priority_and_task_id(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(app.tasks["tasks.basic.add"], "apply_async", lambda args, **options: calls.append(options))
    sending = Sending(task="tasks.basic.add", args=[[1, 2]], rate=1, queue="high", priority=0)
    Message(sending, [1, 2], "an id").publish()
    options = {"queue": "high", "priority": 0, "task_id": "an id", "retry": False, "ignore_result": True}
    assert calls == [options]


# --- Back-pressure ---


def test_a_deep_queue_holds_back_its_own_messages_only(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(settings, "max_queue_depth", 100)

    def look(queues: Iterable[str]) -> dict[str, int]:
        low = 101 if 10 <= world.now < 20 else 90 if 20 <= world.now < 30 else 0
        throttled = producer.THROTTLED.labels("low")._value.get()
        seen.append((world.now, throttled))
        return {"high": 100, "low": low}

    seen: list[tuple[float, float]] = []
    monkeypatch.setattr(world, "look", look)
    made = world.run(pattern("60s", queries={**SEARCH, "rate": 2}, sums={**ADD, "rate": 10}))
    assert world.times("tasks.search.search") == pytest.approx([i / 2 for i in range(120)], abs=1e-6)
    held = [when for when in world.times("tasks.basic.add") if 11 <= when < 30]
    assert held == [], "not between more than the limit and less than 80 % of it"
    assert len(world.times("tasks.basic.add")) == pytest.approx(400, abs=15), "and no burst afterwards"
    assert made.unpublished.total() == 0, "what is held back is sent later"
    assert {throttled for when, throttled in seen if 12 <= when < 30} == {1}
    assert {throttled for when, throttled in seen if when < 10 or when > 32} == {0}
    assert [record.message for record in caplog.records] == [
        "queue low has 101 messages, more than 100: sending to it is paused",
        "queue low has only 0 messages: sending to it is resumed",
    ]
    assert max(b - a for a, b in zip(world.beats, world.beats[1:], strict=False)) < 5, "healthy meanwhile"


# --- Redis down ---


def test_while_redis_is_down_it_retries_counts_and_logs_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.away = (10.0, 40.0)
    before = producer.UNPUBLISHED.labels("tasks.basic.add")._value.get()
    made = world.run(pattern("60s", sums={**ADD, "rate": 10}))
    assert made.published.total() + made.unpublished.total() == 600, (
        "each message is counted as published or as unpublished"
    )
    assert made.unpublished.total() == pytest.approx((30 - MAX_LATE) * 10, abs=15)
    assert producer.UNPUBLISHED.labels("tasks.basic.add")._value.get() - before == made.unpublished.total()
    tries = {when for when, _ in world.tried if 10 <= when < 40}
    assert len(tries) == pytest.approx(30, abs=2), "one attempt a second until Redis answers"
    assert [record.message for record in caplog.records] == [
        "Redis accepts no messages (Connection refused); trying again every 1 s",
        f"Redis accepts messages again, after 30.0 s; {made.unpublished.total()} could not be published",
    ]
    burst = [when for when in world.times("tasks.basic.add") if 40 <= when < 41]
    assert len(burst) <= (MAX_LATE + 1) * 10 + 1
    assert not [when for when in world.beats if 15 < when < 40], "unhealthy"
    assert [when for when in world.beats if when > 40], "healthy again"


def test_attempts_of_one_message_have_one_task_id(world: World) -> None:
    world.away = (10.0, 13.5)
    made = world.run(pattern("20s", sums={**ADD, "rate": 1}))
    assert made.unpublished.total() == 0
    tries = [[task_id for when, task_id in world.tried if when == second] for second in (10, 11, 12, 13, 14)]
    assert [len(ids) for ids in tries] == [1, 2, 3, 4, 5]
    assert all(later[: len(ids)] == ids for ids, later in pairwise(tries))
    assert len({task_id for _, task_id in world.tried}) == 20, "and no two messages share one"


def test_messages_that_redis_refuses_are_counted_and_others_are_sent(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.refused = [1, 2]
    made = world.run(pattern("60s", sums={**ADD, "rate": 10, "batch": 20}, queries={**SEARCH, "rate": 1}))
    assert len(world.tried) == 60 * 11, "each once"
    assert len(world.sent) == made.published.total() == 60 * 11 - made.unpublished.total()
    assert 0 < made.unpublished["tasks.basic.add"] == made.unpublished.total() < 600, "the seed draws both"
    assert {record.message.partition(" of ")[2] for record in caplog.records} == {"21 messages: refused"}
    assert max(b - a for a, b in zip(world.beats, world.beats[1:], strict=False)) < 5, "healthy meanwhile"


def test_an_attempt_that_hangs_and_then_succeeds_is_counted_once(world: World) -> None:
    world.away, world.hangs = (10.0, 41.0), 8.0
    made = world.run(pattern("60s", sums={**ADD, "rate": 10}))
    assert made.published.total() + made.unpublished.total() == 600


def test_what_was_due_at_the_end_counts_as_unpublished(world: World) -> None:
    world.away = (10.0, 99.0)
    made = world.run(pattern("12s", sums={**ADD, "rate": 10}))
    assert (made.published.total(), made.unpublished.total()) == (100, 20)
    assert made.summary() == "published 100, unpublished 20 in 12.0 s: tasks.basic.add 100"


def test_a_queue_that_was_held_back_does_not_keep_it_from_trying(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all its queues held back it sends nothing, so a publish cannot show that Redis is back."""
    monkeypatch.setattr(settings, "max_queue_depth", 100)

    def look(queues: Iterable[str]) -> dict[str, int]:
        if 10 <= world.now < 20:
            raise RedisError("away")
        return {"low": 200 if world.now < 10 else 0}

    monkeypatch.setattr(world, "look", look)
    world.away = (10.0, 20.0)
    world.run(pattern("30s", sums={**ADD, "rate": 10}))
    assert len([when for when in world.times("tasks.basic.add") if when > 21]) == pytest.approx(90, abs=15)


def test_a_publish_that_is_stuck_does_not_keep_it_from_stopping(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    released = Event()

    def publish(_: Message) -> None:
        if not released.is_set():
            os.kill(os.getpid(), signal.SIGTERM)
            released.wait(60)

    monkeypatch.setattr(Message, "publish", publish)
    monkeypatch.setattr(Producer, "_look_at_depths", lambda self, now: None)  # would detect first that Redis is down
    monkeypatch.setattr(settings, "run_dir", tmp_path)
    monkeypatch.setattr(settings, "metrics_port", 0)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    start = time.monotonic()
    try:
        assert main(["--traffic", "steady"]) == 0
        assert time.monotonic() - start < 30, "far less than the time that the publish is stuck"
    finally:
        released.set()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert re.match(r"published 0, unpublished [1-9]", capsys.readouterr().out)


# --- The program against a real Redis ---


class Running:
    """`python producer.py` as the container runs it."""

    def __init__(self, server: RedisServer, folder: Path, *arguments: str, **environment: str) -> None:
        self.metrics_port, self.heartbeat = free_port(), folder / "heartbeat"
        url = f"redis://default:any@127.0.0.1:{server.port}/0"
        env = {**os.environ, "REDIS_BROKER_URL": url, "REDIS_RESULTS_URL": url, "RUN_DIR": str(folder)}
        env |= {"METRICS_PORT": str(self.metrics_port), **environment}
        self._log: Path = folder / "log"
        with self._log.open("w") as log:
            self.process = self._start(arguments, env, log)

    @staticmethod
    def _start(arguments: tuple[str, ...], env: dict[str, str], log: IO[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, str(PATTERNS.with_name("producer.py")), *arguments], env=env, stdout=log, stderr=log
        )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def metric(self, name: str) -> float:
        """The sum of a metric's samples; 0 when it has none yet."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=5) as response:
            lines = response.read().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if re.match(rf"{re.escape(name)}[ {{]", line + " "))

    def await_log(self, text: str, timeout: float = 30) -> None:
        poll_until(lambda: text in self.log, f"the producer to say {text!r}", timeout)

    def ended(self, timeout: float) -> tuple[int, int, int]:
        """Exit code, and the published and unpublished messages of its last line."""
        code = self.process.wait(timeout)
        last = self.log.splitlines()[-1]
        match = re.match(r"published (\d+), unpublished (\d+) in [\d.]+ s", last)
        assert match, f"no summary but {last!r}"
        return code, int(match[1]), int(match[2])


@contextmanager
def running(server: RedisServer, folder: Path, *arguments: str, **environment: str) -> Iterator[Running]:
    made = Running(server, folder, *arguments, **environment)
    try:
        yield made
    except BaseException as error:
        error.add_note(made.log)
        raise
    finally:
        made.process.kill()
        made.process.wait()


def depth(server: RedisServer, queue: str) -> int:
    return sum(int(server.client.llen(name)) for name in durable.priority_lists(queue))


def test_what_it_logs_is_in_the_queues(redis_server: RedisServer, tmp_path: Path) -> None:
    with running(redis_server, tmp_path, "--traffic", "flood", "--for", "3s") as run:
        code, published, unpublished = run.ended(timeout=60)
    assert code == 0
    assert unpublished == 0
    assert depth(redis_server, "low") + depth(redis_server, "high") == published
    assert 0 < depth(redis_server, "high") <= 15, "5 a second, fewer on a busy machine"
    scripts = redis_server.client.info("commandstats")["cmdstat_evalsha"]["calls"]
    assert scripts < published / 5, "messages of a batch are published together"
    assert {name for name in redis_server.client.scan_iter() if b"kombu" not in name and b":batch:" not in name} == {
        durable.priority_lists(queue)[priority].encode() for queue, priority in (("high", 5), ("low", 5), ("low", 7))
    }


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_stop_ends_it_soon_with_its_summary(
    redis_server: RedisServer, tmp_path: Path, number: signal.Signals, exit_code: int
) -> None:
    with running(redis_server, tmp_path, "--traffic", "flood") as run:
        poll_until(lambda: depth(redis_server, "low") > 50, "messages in queue low", timeout=60)
        run.process.send_signal(number)
        code, published, _ = run.ended(timeout=10)
    assert code == exit_code
    assert f"stopped by {number.name}" in run.log
    assert depth(redis_server, "low") + depth(redis_server, "high") == published


def test_redis_down_and_up_again(redis_server: RedisServer, tmp_path: Path) -> None:
    with running(redis_server, tmp_path, "--traffic", "flood") as run:
        poll_until(lambda: depth(redis_server, "high") > 5, "messages in queue high", timeout=60)
        assert run.metric("celery_producer_last_publish_timestamp_seconds") == pytest.approx(time.time(), abs=30)
        with redis_server.stopped():
            run.await_log("Redis accepts no messages")
            beat = run.heartbeat.stat().st_mtime
            poll_until(
                lambda: run.metric("celery_producer_unpublished_total") > 100, "unpublished messages", timeout=60
            )
            assert run.heartbeat.stat().st_mtime == beat, "its health check must fail if this continues"
        run.await_log("Redis accepts messages again")
        poll_until(lambda: depth(redis_server, "high") > 5, "messages in queue high again", timeout=60)
        poll_until(lambda: run.heartbeat.stat().st_mtime > beat, "a heartbeat", timeout=60)
        metric = run.metric("celery_producer_unpublished_total")
        run.process.terminate()
        code, _, unpublished = run.ended(timeout=10)
    assert code == 0
    assert unpublished == metric
    assert run.log.count("Redis accepts") == 2, "once each"


def test_it_can_be_stopped_while_redis_is_frozen(redis_server: RedisServer, tmp_path: Path) -> None:
    with running(redis_server, tmp_path, "--traffic", "flood") as run:
        poll_until(lambda: depth(redis_server, "high") > 5, "messages in queue high", timeout=60)
        with redis_server.frozen():
            run.await_log("Redis accepts no messages")
            run.process.terminate()
            code, _, unpublished = run.ended(timeout=10)
    assert code == 0
    assert unpublished > 0


def test_it_starts_without_redis_and_waits_for_it(redis_server: RedisServer, tmp_path: Path) -> None:
    with redis_server.stopped():
        run = Running(redis_server, tmp_path, "--traffic", "steady")
        try:
            run.await_log("Redis accepts no messages")
        except BaseException:
            run.process.kill()
            raise
    try:
        run.await_log("Redis accepts messages again")
        poll_until(lambda: depth(redis_server, "high") > 0, "messages in queue high", timeout=60)
        assert run.process.poll() is None
    finally:
        run.process.kill()
        run.process.wait()


def test_a_deep_queue_of_a_real_redis(redis_server: RedisServer, tmp_path: Path) -> None:
    with running(redis_server, tmp_path, "--traffic", "flood", MAX_QUEUE_DEPTH="300") as run:
        run.await_log("queue low has", timeout=60)
        poll_until(lambda: run.metric("celery_producer_throttled") == 1, "queue low to be throttled", timeout=30)
        low, high = depth(redis_server, "low"), depth(redis_server, "high")
        assert low > 300
        poll_until(lambda: depth(redis_server, "high") > high + 5, "queries to continue", timeout=30)
        assert depth(redis_server, "low") == low, "nothing is added to the deep queue"
        redis_server.client.delete(*durable.priority_lists("low"))
        run.await_log("sending to it is resumed")
        poll_until(lambda: depth(redis_server, "low") > 0, "messages in queue low again", timeout=30)
