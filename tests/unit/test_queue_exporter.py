"""The queue exporter as a user runs it: a process, its environment, /metrics, and a real Redis."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from kombu import Connection, Producer, Queue
from prometheus_client.parser import text_string_to_metric_families

from celery_durable.times import eta_of
from queue_exporter.broker import Broker
from queue_exporter.heads import HeadAges, Stamps, read_stamps
from queue_exporter.settings import SettingError, Settings
from stack.poll import poll_until
from tests.redis_server import RedisServer, free_port

PROJECT = Path(__file__).parents[2]
SERVICE = PROJECT / "services" / "queue-exporter"
README = (SERVICE / "README.md").read_text()
PASSWORD = "canary-3f9a"  # noqa: S105 - of a Redis that lives for one test
STEPS = range(10)
TRANSPORT_OPTIONS = {"priority_steps": list(STEPS), "sep": ":", "queue_order_strategy": "priority"}
# Long enough for a loaded machine; the exporter itself promises 2 s.
SCRAPE_TIMEOUT = 5.0

Sample = tuple[str, frozenset[tuple[str, str]]]


def sample(name: str, **labels: str) -> Sample:
    return name, frozenset(labels.items())


def waiting(queue: str, step: int) -> Sample:
    return sample("celery_queue_messages", queue=queue, priority=str(step), state="waiting")


def age(queue: str) -> Sample:
    return sample("celery_queue_oldest_message_age_seconds", queue=queue)


def consumers(queue: str) -> Sample:
    return sample("celery_queue_consumers", queue=queue)


UP = sample("celery_broker_up")
UNACKED = sample("celery_unacked_messages")
DEAD_LETTERS = sample("celery_dead_letters")
DURATION = sample("celery_queue_exporter_scrape_duration_seconds")


class Exporter:
    """A running exporter."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log_file: Path) -> None:
        self.process = process
        self.port = port
        self._log_file = log_file

    def get(self, path: str) -> tuple[int, str]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=SCRAPE_TIMEOUT) as response:
            return response.status, response.read().decode()

    def scrape(self) -> dict[Sample, float]:
        """The celery_* samples of one scrape."""
        status, text = self.get("/metrics")
        assert status == 200
        return {
            (s.name, frozenset(s.labels.items())): s.value
            for family in text_string_to_metric_families(text)
            for s in family.samples
            if s.name.startswith("celery_")
        }

    def log(self) -> list[str]:
        return self._log_file.read_text().splitlines()


Start = Callable[..., Exporter]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start exporters with the given environment; they are ended after the test."""
    started: list[Exporter] = []

    def start_exporter(**environment: str) -> Exporter:
        port = free_port()
        log_file = tmp_path / f"exporter-{port}.log"
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "queue_exporter"],
                cwd=SERVICE,
                env={"PATH": os.environ["PATH"], "PORT": str(port), **environment},
                stderr=log,
            )
        exporter = Exporter(process, port, log_file)
        started.append(exporter)
        poll_until(lambda: exporter.get("/healthz") == (200, "ok\n"), "the exporter's /healthz", timeout=20)
        return exporter

    yield start_exporter
    for exporter in started:
        exporter.process.kill()
        exporter.process.wait()


def least_rights() -> list[str]:
    """The ACL of README.md, after the password."""
    rule = next(line.strip() for line in README.splitlines() if line.strip().startswith("user exporter on "))
    return rule[rule.index("resetchannels") :].split()


@pytest.fixture
def environment(redis_server: RedisServer, tmp_path: Path) -> dict[str, str]:
    """An exporter's settings for the stack, as a user with only the rights that README.md names."""
    redis_server.client.execute_command("ACL", "SETUSER", "exporter", "on", f">{PASSWORD}", *least_rights())
    password_file = tmp_path / "password"
    password_file.write_text(PASSWORD + "\n")
    return {
        "BROKER_URL": f"redis://exporter@127.0.0.1:{redis_server.port}/0",
        "REDIS_PASSWORD_FILE": str(password_file),
        "QUEUES": "high,low",
        "PRIORITY_STEPS": ",".join(map(str, STEPS)),
        "PRIORITY_SEPARATOR": ":",
    }


@pytest.fixture
def exporter(start: Start, environment: dict[str, str]) -> Exporter:
    return start(**environment)


def celery_app(url: str, **transport_options: Any) -> Celery:
    app = Celery(broker=url, set_as_current=False)
    app.conf.broker_transport_options = transport_options
    return app


def publish(redis_server: RedisServer, queue: str, priority: int, **headers: object) -> None:
    """Publish with kombu alone: Celery's signals may stamp messages, which these tests must not have."""
    with Connection(redis_server.url, transport_options=TRANSPORT_OPTIONS) as connection:
        producer = Producer(connection.default_channel)
        producer.publish([], routing_key=queue, declare=[Queue(queue)], priority=priority, headers=headers)


def recipe(signal_name: str) -> str:
    """The block of README.md that connects a signal."""
    blocks: list[str] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (block,) = [block for block in blocks if f"@{signal_name}.connect" in block]
    return textwrap.dedent("  " + block.lstrip())


def raw_message(**headers: object) -> bytes:
    """A message as kombu writes it, with these headers."""
    return json.dumps({"body": "W1tdLHt9LHt9XQ==", "headers": headers, "properties": {"priority": 0}}).encode()


# --- depth -----------------------------------------------------------------------------------------------------------


def test_waiting_and_unacked_equal_a_full_count(exporter: Exporter, redis_server: RedisServer) -> None:
    """4000 messages of every priority, published by Celery, some of them taken and not acknowledged."""
    rng = random.Random(7)
    app = celery_app(redis_server.url, **TRANSPORT_OPTIONS)
    with app.connection_for_write() as connection, app.amqp.Producer(connection) as producer:
        for _ in range(4000):
            queue = rng.choice(["high", "low", "low"])
            app.send_task("any", queue=queue, priority=rng.choice(STEPS), producer=producer)
        channel: Any = connection.default_channel  # celery-types knows no basic_get
        held = [channel.basic_get(rng.choice(["high", "low"]), no_ack=False) for _ in range(137)]
        assert all(held)

        counted: Counter[tuple[str, int]] = Counter()
        for key in redis_server.client.scan_iter(match="*", _type="list"):
            for raw in redis_server.client.lrange(key, 0, -1):
                properties = json.loads(raw)["properties"]
                counted[properties["delivery_info"]["routing_key"], properties["priority"]] += 1
        scraped = exporter.scrape()

        assert counted.total() == 4000 - 137
        assert len(counted) == 20  # every list of both queues is tested
        assert {key: scraped[key] for key in scraped if key[0] == "celery_queue_messages"} == {
            waiting(queue, step): counted[queue, step] for queue in ("high", "low") for step in STEPS
        }
        assert scraped[UNACKED] == redis_server.client.hlen("unacked") == 137
        for message in held:
            message.ack()
        assert exporter.scrape()[UNACKED] == 0


def test_delayed_messages_are_counted(exporter: Exporter, redis_server: RedisServer) -> None:
    delayed, due = (
        sample(f"celery_queue_{name}", queue="low") for name in ("delayed_messages", "next_due_timestamp_seconds")
    )
    scraped = exporter.scrape()
    assert scraped[delayed] == 0
    assert due not in scraped
    redis_server.client.zadd("celery-durable:delayed:low", {"low\0a\0{}": 2e9, "low\0b\0[]": 1.9e9})
    scraped = exporter.scrape()
    assert (scraped[delayed], scraped[due]) == (2, 1.9e9)
    assert scraped[sample("celery_queue_delayed_messages", queue="high")] == 0


def test_dead_letters_are_counted(exporter: Exporter, redis_server: RedisServer) -> None:
    assert exporter.scrape()[DEAD_LETTERS] == 0
    first, _ = (redis_server.client.xadd("celery-durable:dead-letters", {"reason": "malformed"}) for _ in range(2))
    assert exporter.scrape()[DEAD_LETTERS] == 2
    redis_server.client.xdel("celery-durable:dead-letters", first)
    assert exporter.scrape()[DEAD_LETTERS] == 1


def test_defaults_are_those_of_kombu(start: Start, redis_server: RedisServer) -> None:
    """Without settings, Celery and the exporter agree on the lists of the priorities."""
    app = celery_app(redis_server.url)
    for priority in range(10):
        app.send_task("any", queue="celery", priority=priority)
    scraped = start(BROKER_URL=redis_server.url, QUEUES="celery").scrape()
    depths = {
        int(dict(labels)["priority"]): depth
        for (name, labels), depth in scraped.items()
        if name == "celery_queue_messages"
    }
    assert depths == {0: 3, 3: 3, 6: 3, 9: 1}


def test_global_keyprefix(start: Start, environment: dict[str, str], redis_server: RedisServer) -> None:
    app = celery_app(redis_server.url, global_keyprefix="shop:", **TRANSPORT_OPTIONS)
    redis_server.client.execute_command("ACL", "SETUSER", "exporter", "allkeys")
    exporter = start(**environment, GLOBAL_KEYPREFIX="shop:")
    with app.connection_for_write() as connection, app.amqp.Producer(connection) as producer:
        for priority in (0, 0, 7):
            app.send_task("any", queue="low", priority=priority, producer=producer)
        channel: Any = connection.default_channel  # celery-types knows no basic_get
        channel.basic_get("low", no_ack=False)
        scraped = exporter.scrape()
    assert (scraped[waiting("low", 0)], scraped[waiting("low", 7)], scraped[UNACKED]) == (1, 1, 1)


def test_cost_does_not_grow_with_depth(start: Start, environment: dict[str, str], redis_server: RedisServer) -> None:
    """One round trip, the same commands and as many bytes for 20 messages as for 100,000."""
    with CountingProxy(redis_server.port) as proxy:
        environment["BROKER_URL"] = f"redis://exporter@127.0.0.1:{proxy.port}/0"
        exporter = start(**environment)
        exporter.scrape()  # connects and logs in
        costs = []
        for each in (1, 5000):
            for queue in ("high", "low"):
                for step in STEPS:
                    key = f"{queue}:{step}" if step else queue
                    redis_server.client.lpush(key, *[raw_message(published_at=1.5e9)] * each)
            redis_server.client.config_resetstat()
            proxy.reset()
            assert exporter.scrape()[UP] == 1
            stats = redis_server.client.info("commandstats")
            commands = {name: stat["calls"] for name, stat in stats.items() if name != "cmdstat_config|resetstat"}
            costs.append((proxy.round_trips, commands, proxy.bytes_received))
    assert redis_server.client.llen("low:9") == 5001
    (trips, commands, received), (deep_trips, deep_commands, deep_received) = costs
    assert trips == deep_trips == 1
    assert commands == deep_commands
    used = ("llen", "lindex", "zcard", "zrange", "hlen", "xlen", "hgetall", "client|list")
    assert set(commands) == {f"cmdstat_{name}" for name in used}
    assert deep_received == pytest.approx(received, rel=0.05)  # a few more digits


class CountingProxy:
    """A proxy between an exporter and Redis that counts the changes of direction."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        self._dropped: set[socket.socket] = set()
        self.connections = 0
        self.reset()

    def reset(self) -> None:
        self.round_trips = 0
        self.bytes_received = 0
        self._client_speaks = False

    def drop(self) -> None:
        """Deliver nothing more on the existing connections."""
        self._dropped = set(self._sockets)

    def __enter__(self) -> CountingProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for sock in (self._listener, *self._sockets):
            sock.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target_port))
            self._sockets += [client, server]
            self.connections += 1
            threading.Thread(target=self._pump, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, False), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, from_client: bool) -> None:
        try:
            while data := source.recv(65536):
                if source in self._dropped:
                    continue
                if from_client:
                    self.round_trips += not self._client_speaks
                else:
                    self.bytes_received += len(data)
                self._client_speaks = from_client
                sink.sendall(data)
        except OSError:
            return


# --- age -------------------------------------------------------------------------------------------------------------


def test_oldest_age_by_stamp(exporter: Exporter, redis_server: RedisServer) -> None:
    """The oldest of a queue's heads counts, whatever its priority, from its stamp or a later ETA."""
    now = time.time()

    def iso(seconds: float) -> str:
        return datetime.fromtimestamp(seconds, UTC).isoformat()

    def assert_age(queue: str, since: float) -> None:
        before = time.time()
        seconds = exporter.scrape()[age(queue)]
        assert before - since <= seconds <= time.time() - since

    publish(redis_server, "low", 9, published_at=now - 500, eta=iso(now - 300))
    assert_age("low", now - 300)
    publish(redis_server, "low", 2, published_at=now - 400, eta=iso(now - 600))
    publish(redis_server, "low", 2, published_at=now - 450)  # behind the head, so not read
    assert_age("low", now - 400)
    publish(redis_server, "high", 5, published_at=now - 60, eta=iso(now + 600))
    assert exporter.scrape()[age("high")] == 0  # not due yet
    redis_server.client.rpop("low:2")
    assert_age("low", now - 450)
    redis_server.client.delete("low:2", "low:9")
    assert exporter.scrape()[age("low")] == 0


def test_recipe_for_stamps(redis_server: RedisServer, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(shop(redis_server, recipe("before_task_publish")))
    before = time.time()
    send = 'import shop; shop.app.send_task("any", queue="low", priority=3, countdown=60)'
    subprocess.run([sys.executable, "-c", send], cwd=tmp_path, env={"PATH": os.environ["PATH"]}, check=True, timeout=60)
    (raw,) = redis_server.client.lrange("low:3", 0, -1)
    stamps = read_stamps(raw)
    assert stamps.published_at is not None
    assert stamps.eta is not None
    assert before <= stamps.published_at <= time.time()
    assert before + 60 <= stamps.eta <= stamps.published_at + 60


def test_age_without_stamp_is_a_lower_bound(exporter: Exporter, redis_server: RedisServer) -> None:
    """Counts from when the message was first seen at the head, and again from 0 for the next one."""
    published = time.time()
    publish(redis_server, "high", 4)
    publish(redis_server, "high", 4)
    first = exporter.scrape()[age("high")]
    assert 0 <= first <= time.time() - published
    poll_until(lambda: exporter.scrape()[age("high")] > 0.5, "the age to grow", timeout=10)
    assert exporter.scrape()[age("high")] <= time.time() - published
    taken = time.time()
    redis_server.client.rpop("high:4")
    assert exporter.scrape()[age("high")] <= time.time() - taken


@pytest.mark.parametrize(
    ("raw", "stamps"),
    [
        (raw_message(published_at=12.5, eta=None), Stamps(12.5)),
        (raw_message(published_at=12, eta="1970-01-01T00:01:00+00:00"), Stamps(12, 60)),
        (raw_message(eta="1970-01-01T01:01:00+01:00"), Stamps(None, 60)),
        (raw_message(eta="1970-01-01T00:01:00"), Stamps(None, 60)),
        (raw_message(eta="tomorrow"), Stamps()),
        (raw_message(eta=60), Stamps()),
        (raw_message(published_at="12"), Stamps()),
        (raw_message(published_at=True), Stamps()),
        (b"", Stamps()),
        (b"\xff\xfe not text", Stamps()),
        (b"{", Stamps()),
        (b"null", Stamps()),
        (b"[1]", Stamps()),
        (b'{"body": 1}', Stamps()),
        (b'{"headers": null}', Stamps()),
        (b'{"headers": [1]}', Stamps()),
        (b"[" * 100_000, Stamps()),
        (b'{"headers": {"published_at": 1' + b"0" * 5000 + b"}}", Stamps()),
        (raw_message(eta="0001-01-01T00:00:00+23:59"), Stamps(None, -62135683140)),
    ],
)
def test_stamps(raw: bytes, stamps: Stamps) -> None:
    assert read_stamps(raw) == stamps


@pytest.mark.parametrize(
    "eta",
    [
        *(
            "2026-07-01T12:00:00",
            "2026-07-01T12:00:00Z",
            "2026-07-01T12:00:00.5-07:00",
            "2026-07-01",
            "20260701T120000",
        ),
        *("0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "soon", "", None, 60, True, [], {}),
    ],
)
def test_an_eta_is_the_time_that_the_library_takes_it_for(eta: object) -> None:
    """Outbox, transport and metrics read it by celery_durable.times; this exporter runs without the library."""
    assert (read_stamps(raw_message(eta=eta)).eta or 0.0) == eta_of({"eta": eta})


@pytest.mark.parametrize("published_at", [None, 2000.0, float("nan"), float("inf"), -1.0, 0, 10**400])
def test_unusable_stamps_count_from_first_seen(published_at: float | None) -> None:
    ages: HeadAges[str] = HeadAges()
    head = {"low": raw_message(published_at=published_at)}
    assert [ages.ages(head, now)["low"] for now in (1000.0, 1001.0, 1005.0)] == [0, 1, 5]
    assert ages.ages({"low": None}, 1006.0)["low"] == 0
    assert ages.ages(head, 1010.0)["low"] == 0  # it was returned: first seen again


@pytest.mark.parametrize("raw", [b"", b"\xff\x00garbage", b'{"headers": []}', b"[" * 100_000])
def test_undecodable_head_breaks_nothing(exporter: Exporter, redis_server: RedisServer, raw: bytes) -> None:
    redis_server.client.lpush("high:3", raw)
    stamp = time.time() - 30
    redis_server.client.lpush("low:1", raw_message(published_at=stamp))
    exporter.scrape()
    poll_until(lambda: exporter.scrape()[age("high")] > 0, "the age of a head without a readable stamp", 10)
    scraped = exporter.scrape()
    assert (scraped[UP], scraped[waiting("high", 3)], scraped[waiting("low", 1)]) == (1, 1, 1)
    assert 30 <= scraped[age("low")] <= time.time() - stamp


# --- workers ---------------------------------------------------------------------------------------------------------


@contextmanager
def connections(redis_server: RedisServer, name: str, count: int = 1, db: int = 0) -> Iterator[list[redis.Redis]]:
    clients = [
        redis.Redis(port=redis_server.port, db=db, client_name=name, single_connection_client=True)
        for _ in range(count)
    ]
    for client in clients:
        client.ping()
    try:
        yield clients
    finally:
        for client in clients:
            client.close()


def test_consumers_by_connection_name(exporter: Exporter, redis_server: RedisServer) -> None:
    """Distinct node names by queue; other names, other databases and other queues do not count."""
    with (
        connections(redis_server, "celery-worker:high@a:high", 10),
        connections(redis_server, "celery-worker:high@b:high", 10) as killed,
        connections(redis_server, "celery-worker:both@c:high,low", 3),
        connections(redis_server, "celery-worker:reports@d:reports"),
        connections(redis_server, "celery-worker:high@e:high", db=1),
        connections(redis_server, "celery-client"),
        connections(redis_server, "my-celery-worker:high@f:high"),
        connections(redis_server, "celery-worker:high"),
    ):
        scraped = exporter.scrape()
        assert (scraped[consumers("high")], scraped[consumers("low")]) == (3, 1)
        assert sample("celery_queue_consumers", queue="reports") not in scraped

        for entry in redis_server.client.client_list():
            if entry["name"] == "celery-worker:high@b:high":
                redis_server.client.client_kill_filter(_id=entry["id"])
        assert exporter.scrape()[consumers("high")] == 2
        assert len(killed) == 10
    poll_until(lambda: exporter.scrape()[consumers("high")] == 0, "closed connections to be gone", timeout=10)


def shop(redis_server: RedisServer, block: str) -> str:
    """A user's module: a recipe and an application."""
    return f"""{block}
from celery import Celery

app = Celery(broker={redis_server.url!r})
app.conf.broker_transport_options = {TRANSPORT_OPTIONS!r}
"""


def test_real_workers_appear_and_disappear(exporter: Exporter, redis_server: RedisServer, tmp_path: Path) -> None:
    """Celery workers with README.md's recipe: each counts once for all its connections, until SIGKILL."""
    (tmp_path / "shop.py").write_text(shop(redis_server, recipe("celeryd_init")))

    def worker(name: str, queues: str) -> subprocess.Popen[bytes]:
        command = ["celery", "-A", "shop", "worker", "-P", "solo", "-n", name, "-Q", queues, "-l", "error"]
        return subprocess.Popen(
            [sys.executable, "-m", *command], cwd=tmp_path, env={"PATH": os.environ["PATH"]}, stderr=subprocess.DEVNULL
        )

    def counts(high: int, low: int) -> Callable[[], bool]:
        def seen() -> bool:
            scraped = exporter.scrape()
            return (scraped[consumers("high")], scraped[consumers("low")]) == (high, low)

        return seen

    def named() -> int:
        clients = redis_server.client.client_list()
        return sum(entry["name"] == "celery-worker:two@h:high" for entry in clients)

    workers = [worker("one@h", "high,low"), worker("two@h", "high")]
    try:
        # With one connection a worker, the test would not show that all of them count once.
        poll_until(lambda: named() > 1, "two connections of one worker", timeout=60)
        poll_until(counts(2, 1), "two workers on high, one on low", timeout=60)
        assert named() > 1
        workers[0].kill()
        poll_until(counts(1, 0), "the killed worker to be gone", timeout=10)
    finally:
        for process in workers:
            process.kill()
            process.wait()


def test_heartbeats_of_registered_workers(exporter: Exporter, redis_server: RedisServer) -> None:
    registry = {"high@a": '{"queues": ["high"], "heartbeat": 1795406246.25}', "low@b": '{"heartbeat": 5}'}
    redis_server.client.hset("celery-durable:workers", mapping={**registry, "odd@c": "no JSON", "odd@d": "{}"})
    heartbeats = {key: value for key, value in exporter.scrape().items() if "heartbeat" in key[0]}
    assert heartbeats == {
        sample("celery_worker_heartbeat_timestamp_seconds", worker="high@a"): 1795406246.25,
        sample("celery_worker_heartbeat_timestamp_seconds", worker="low@b"): 5,
    }
    assert any("odd@c" in line and "odd@d" in line for line in exporter.log())
    redis_server.client.delete("celery-durable:workers")
    assert not [key for key in exporter.scrape() if "heartbeat" in key[0]]


def test_the_series_of_invented_workers_are_bounded(exporter: Exporter, redis_server: RedisServer) -> None:
    invented = {f"invented\nERROR @{number}": '{"heartbeat": 5}' for number in range(10_000)}
    redis_server.client.hset("celery-durable:workers", mapping=invented)
    assert len([key for key in exporter.scrape() if "heartbeat" in key[0]]) == 1000
    assert any("there are more than 1000 registrations" in line for line in exporter.log())
    redis_server.client.delete("celery-durable:workers")
    redis_server.client.hset("celery-durable:workers", mapping={"odd\nERROR forged": "{}"})
    exporter.scrape()
    assert any("'odd\\nERROR forged' has no readable heartbeat" in line for line in exporter.log())
    redis_server.client.delete("celery-durable:workers")


# --- Redis down ------------------------------------------------------------------------------------------------------


def assert_unavailable(exporter: Exporter) -> None:
    """The exporter answers, reports the broker as down, and exports no figures."""
    scraped = exporter.scrape()
    assert set(scraped) == {UP, DURATION}
    assert scraped[UP] == 0
    assert exporter.get("/healthz") == (200, "ok\n")


def lines_about_broker(exporter: Exporter) -> list[str]:
    return [re.split("[:;]", line.split(" ", 3)[3])[0] for line in exporter.log() if " broker " in line]


def test_redis_stopped_and_started(exporter: Exporter, redis_server: RedisServer, environment: dict[str, str]) -> None:
    redis_server.client.lpush("high", raw_message())
    assert exporter.scrape()[waiting("high", 0)] == 1
    with redis_server.stopped():
        for _ in range(3):
            assert_unavailable(exporter)
    # It restarted without its users: a failed login counts as unavailable, too, and is retried.
    assert_unavailable(exporter)
    redis_server.client.execute_command("ACL", "SETUSER", "exporter", "on", f">{PASSWORD}", *least_rights())
    poll_until(lambda: exporter.scrape()[UP] == 1, "the exporter to find Redis again", timeout=10)
    assert exporter.scrape()[waiting("high", 0)] == 0
    # A line for each change, not for each scrape: up, refused, login refused, up.
    assert lines_about_broker(exporter) == ["broker up", "broker unavailable", "broker unavailable", "broker up"]
    assert not any(PASSWORD in line for line in exporter.log())


def test_redis_frozen(start: Start, environment: dict[str, str], redis_server: RedisServer) -> None:
    """Simultaneous scrapes neither wait for each other nor each open a connection to a Redis that does not answer."""
    with CountingProxy(redis_server.port) as proxy:
        exporter = start(**{**environment, "BROKER_URL": f"redis://exporter@127.0.0.1:{proxy.port}/0"})
        assert exporter.scrape()[UP] == 1
        with redis_server.frozen(), ThreadPoolExecutor(5) as pool:
            for scrape in [pool.submit(assert_unavailable, exporter) for _ in range(5)]:
                scrape.result()
            assert proxy.connections <= 2  # one, and one more if a scrape came late
        poll_until(lambda: exporter.scrape()[UP] == 1, "the exporter to find Redis again", timeout=10)
        assert exporter.scrape()[waiting("high", 0)] == 0


def test_connection_lost_without_notice(start: Start, environment: dict[str, str], redis_server: RedisServer) -> None:
    """As when Redis' host disappears: nothing arrives on the old connection; a new one would work."""
    with CountingProxy(redis_server.port) as proxy:
        exporter = start(**{**environment, "BROKER_URL": f"redis://exporter@127.0.0.1:{proxy.port}/0"})
        assert exporter.scrape()[UP] == 1
        proxy.drop()
        assert_unavailable(exporter)
        poll_until(lambda: exporter.scrape()[UP] == 1, "the exporter to connect anew", timeout=15)


@pytest.mark.parametrize(
    ("reply", "pause"),
    [
        (b"-LOADING Redis is loading the dataset in memory\r\n", 0.0),
        (b"-MASTERDOWN Link with MASTER is down\r\n", 0.0),
        (b"-NOPERM User exporter has no permissions\r\n", 0.0),
        (b"HTTP/1.1 400 Bad Request\r\n", 0.0),
        (b"$100000000\r\n" + b"x" * 1000, 0.0),
        (b"$100000000\r\n" + b"x" * 1000, 0.2),  # each byte keeps a socket timeout from running out
    ],
    ids=["loading", "masterdown", "noperm", "http", "cut-off", "trickle"],
)
def test_broker_that_answers_nonsense(start: Start, reply: bytes, pause: float) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        done = threading.Event()

        def answer(client: socket.socket) -> None:
            with client:
                try:
                    while not done.is_set() and (request := client.recv(65536)):
                        # The login's commands get valid answers; the read gets nonsense.
                        replies = (reply if b"LLEN" in request else b"+OK\r\n") * len(
                            re.findall(rb"\*\d+\r\n", request)
                        )
                        for byte in range(len(replies)) if pause and b"LLEN" in request else ():
                            client.sendall(replies[byte : byte + 1])
                            if done.wait(pause):
                                return
                        client.sendall(replies)
                except OSError:
                    return

        def accept() -> None:
            while not done.is_set():
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=[client], daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        exporter = start(BROKER_URL=f"redis://127.0.0.1:{listener.getsockname()[1]}/0", QUEUES="high")
        try:
            assert_unavailable(exporter)
            assert_unavailable(exporter)
        finally:
            done.set()


def test_only_unreadable_figures_are_left_out(
    exporter: Exporter, redis_server: RedisServer, environment: dict[str, str]
) -> None:
    """A key of the wrong type and a missing right: the log names them, the other figures are exported."""
    redis_server.client.set("high:3", "no list")
    redis_server.client.execute_command("ACL", "SETUSER", "exporter", "-client|list", "-hlen", "-xlen")
    redis_server.client.lpush("low", raw_message())
    for _ in range(3):
        scraped = exporter.scrape()
    assert scraped[UP] == 1
    assert scraped[waiting("low", 0)] == 1
    assert scraped[waiting("high", 4)] == 0
    left_out = {waiting("high", 3), age("high"), UNACKED, DEAD_LETTERS, consumers("high"), consumers("low")}
    assert not left_out & set(scraped)
    (line,) = [line for line in exporter.log() if " broker " in line]
    for cause in ("LLEN high:3: WRONGTYPE", "HLEN unacked: ", "XLEN celery-durable:dead-letters: ", "CLIENT LIST: "):
        assert cause in line


# --- settings, start and stop ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("BROKER_URL", ""),
        ("BROKER_URL", "amqp://guest@rabbit/"),
        ("BROKER_URL", "redis:///0"),
        ("BROKER_URL", "redis://redis:port/0"),
        ("BROKER_URL", "redis://redis:70000/0"),
        ("BROKER_URL", "redis://redis:6379/main"),
        ("BROKER_URL", "redis://redis:6379/0?timeout_of_no_kind=1"),
        ("BROKER_URL", "rediss://redis:6379/0?ssl_cert_reqs=sometimes"),
        ("BROKER_URL", f"redis://exporter:{PASSWORD}@redis:6379/0"),
        ("BROKER_URL", f"redis://:{PASSWORD}@redis:6379/0"),
        ("REDIS_PASSWORD_FILE", "/nowhere/password"),
        ("REDIS_PASSWORD_FILE", "/dev/null"),
        ("QUEUES", ""),
        ("QUEUES", " , "),
        ("QUEUES", "high,low,high"),
        ("PRIORITY_STEPS", "0,three"),
        ("PRIORITY_STEPS", "0,3,"),
        ("PRIORITY_STEPS", "0,3,3"),
        ("PRIORITY_STEPS", "-1,0"),
        ("PORT", "http"),
        ("PORT", "65536"),
    ],
)
def test_bad_setting(setting: str, value: str) -> None:
    """The error names the setting and holds no secret."""
    good = {"BROKER_URL": "redis://127.0.0.1:1/0", "QUEUES": "high"}
    Broker(Settings.from_environ(good))
    with pytest.raises(SettingError) as refused:
        Broker(Settings.from_environ({**good, setting: value}))
    (line,) = str(refused.value).splitlines()
    assert line.startswith(f"{setting}: ")
    assert PASSWORD not in line


def test_exit_at_a_bad_setting(start: Start) -> None:
    """One line and exit code 2: for a setting in the environment, and for a port in use."""
    taken = str(start(BROKER_URL="redis://127.0.0.1:1/0", QUEUES="high").port)
    for environment, line in (
        ({"QUEUES": "high"}, "queue-exporter: BROKER_URL: not set; "),
        ({"BROKER_URL": "redis://127.0.0.1:1/0?odd=1", "QUEUES": "high"}, "queue-exporter: BROKER_URL: "),
        (
            {"BROKER_URL": "redis://127.0.0.1:1/0", "QUEUES": "high"},
            f"queue-exporter: PORT: cannot listen on {taken}: ",
        ),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "queue_exporter"],
            cwd=SERVICE,
            env={"PATH": os.environ["PATH"], "PORT": taken, **environment},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 2
        assert done.stderr.startswith(line)
        assert len(done.stderr.splitlines()) == 1


def test_username_beside_the_url(start: Start, environment: dict[str, str], redis_server: RedisServer) -> None:
    """The workers' BROKER_URL can be shared: REDIS_USERNAME replaces its user."""
    environment["BROKER_URL"] = f"redis://celery@127.0.0.1:{redis_server.port}/0"
    assert start(**environment).scrape()[UP] == 0
    assert start(**environment, REDIS_USERNAME="exporter").scrape()[UP] == 1


@pytest.mark.parametrize("stop_signal", [signal.SIGTERM, signal.SIGINT])
def test_stops_at_once(exporter: Exporter, redis_server: RedisServer, stop_signal: signal.Signals) -> None:
    """Even while a scrape waits for Redis; exit code 0 and a last line."""
    with redis_server.frozen(), ThreadPoolExecutor(1) as pool:
        scrape = pool.submit(exporter.scrape)
        poll_until(lambda: exporter.get("/healthz")[0] == 200, "/healthz during a scrape", timeout=5)
        exporter.process.send_signal(stop_signal)
        assert exporter.process.wait(timeout=5) == 0
        assert isinstance(scrape.exception(timeout=10), OSError)  # cut off, not waited for
    assert exporter.log()[-1].endswith(f"stopping on {stop_signal.name}")


def test_unknown_path(exporter: Exporter) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404"):
        exporter.get("/")
