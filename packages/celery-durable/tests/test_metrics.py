"""Metrics of an app; counts of a pool's children are neither lost nor added twice."""

import json
import os
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from kombu import Exchange, Queue
from kombu.exceptions import OperationalError

from celery_durable import dead_letters, signals
from celery_durable.dead_letters import Reason

from . import malformed
from .conftest import NewApp
from .poll import poll_until
from .project import Program, Project
from .redis_server import RedisServer, free_port

prometheus_client = pytest.importorskip("prometheus_client")

from celery_durable.metrics.exposition import ChildrenCollector, serve  # noqa: E402
from celery_durable.metrics.tasks import due_at  # noqa: E402

# --- Children of a pool ---

# prometheus-client reads PROMETHEUS_MULTIPROC_DIR when it is imported, so a child is a process of its own.
CHILD = """
import sys
from prometheus_client import Counter, Gauge, Histogram
counter = Counter("done_total", "", ["task"])
Histogram("wait_seconds", "", buckets=(1, 2)).observe(1.5)
Gauge("busy", "", multiprocess_mode="livesum").set(1)
for line in sys.stdin:
    counter.labels("a").inc(int(line))
    print("counted", flush=True)
"""


class Child:
    """A process that counts."""

    def __init__(self, folder: Path) -> None:
        environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)}
        self._process = subprocess.Popen(
            [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def count(self, number: int) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{number}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "counted\n"

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    @property
    def pid(self) -> int:
        return self._process.pid


@pytest.fixture
def new_child(tmp_path: Path) -> Iterator[Callable[[], Child]]:
    """Start children that count into `tmp_path`; they are killed at the end."""
    children: list[Child] = []

    def start() -> Child:
        children.append(Child(tmp_path))
        return children[-1]

    yield start
    for child in children:
        child.kill()


def scrape(collector: ChildrenCollector) -> dict[str, float]:
    """The value of each sample, without its labels."""
    return {
        f"{sample.name}{sample.labels.get('le', '')}": sample.value
        for metric in collector.collect()
        for sample in metric.samples
    }


def test_counts_of_live_children_add_up(new_child: Callable[[], Child], tmp_path: Path) -> None:
    first, second = new_child(), new_child()
    first.count(3)
    second.count(4)
    assert scrape(ChildrenCollector(tmp_path))["done_total"] == 7


def test_counts_survive_a_killed_child_and_stay_the_same_at_each_scrape(
    new_child: Callable[[], Child], tmp_path: Path
) -> None:
    collector = ChildrenCollector(tmp_path)
    for number in (3, 4, 5):
        child = new_child()
        child.count(number)
        child.kill()
        assert scrape(collector) == scrape(collector)
    samples = scrape(collector)
    assert samples["done_total"] == 12
    assert samples["wait_seconds_count"] == 3
    assert samples["wait_seconds_bucket2.0"] == 3
    assert samples["wait_seconds_bucket1.0"] == 0


def test_files_of_dead_children_are_merged(new_child: Callable[[], Child], tmp_path: Path) -> None:
    collector = ChildrenCollector(tmp_path)
    for _ in range(2):
        child = new_child()
        child.count(1)
        assert list(tmp_path.glob(f"*_{child.pid}.db"))
        child.kill()
        scrape(collector)
        assert not list(tmp_path.glob(f"*_{child.pid}.db"))
    assert len(list(tmp_path.glob("*.db"))) <= 2, "one archive per kind of metric"


def test_gauges_of_a_dead_child_are_removed(new_child: Callable[[], Child], tmp_path: Path) -> None:
    collector = ChildrenCollector(tmp_path)
    child = new_child()
    child.count(1)
    assert scrape(collector)["busy"] == 1
    child.kill()
    assert "busy" not in scrape(collector)


def test_simultaneous_scrapes_count_a_dead_child_once(new_child: Callable[[], Child], tmp_path: Path) -> None:
    children = [new_child() for _ in range(4)]
    for child in children:
        child.count(10)
        child.kill()
    collector, barrier = ChildrenCollector(tmp_path), threading.Barrier(8)
    seen: list[float] = []

    def run() -> None:
        barrier.wait()
        for _ in range(5):
            seen.append(scrape(collector)["done_total"])

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [40.0] * 40


def test_a_port_in_use_disables_only_the_metrics(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    serve(port, prometheus_client.CollectorRegistry())
    serve(port, prometheus_client.CollectorRegistry())
    (record,) = caplog.records
    assert record.getMessage() == (
        f"metrics_port: no metrics of this process, port {port} cannot be opened: Address already in use"
    )


# --- Times ---

PUBLISHED, LATER, LATEST = 1000.0, 1010.0, 1020.5


@pytest.mark.parametrize(
    ("published_at", "eta", "redelivered_at", "due"),
    [
        (PUBLISHED, 0, None, PUBLISHED),
        (PUBLISHED, LATER, None, LATER),
        (LATER, PUBLISHED, None, LATER),
        (PUBLISHED, LATER, LATEST, LATEST),
        (PUBLISHED, 0, LATER, LATER),
        (None, LATER, LATEST, None),
    ],
)
def test_a_task_is_due_at_the_latest_of_its_times_and_unknown_without_a_publish_stamp(
    published_at: float | None, eta: float, redelivered_at: float | None, due: float | None
) -> None:
    assert due_at(published_at, eta, redelivered_at) == due


# --- Publishers ---


def nothing() -> None: ...


def counted(name: str, **labels: str) -> float:
    return float(prometheus_client.REGISTRY.get_sample_value(name, labels) or 0)


def test_what_is_published_is_counted_by_its_queue_whichever_app_is_the_current_one(new_app: NewApp) -> None:
    events = Exchange("events", "topic")
    queues = [Queue("plain"), Queue("bound", Exchange("direct"), routing_key="key"), Queue("one", events, "a.#")]
    app = new_app({"task_queues": queues, "task_default_queue": "plain"})
    app.task(nothing, name="counted", shared=False)
    new_app().set_current()

    def by_queue() -> list[float]:
        return [counted("celery_published_total", task="counted", queue=name) for name in ("plain", "bound", "one")]

    before = by_queue()
    for options in ({}, {"queue": "bound"}, {"exchange": "direct", "routing_key": "key"}, {"queue": "one"}):
        app.tasks["counted"].apply_async(**options)
    assert [after - earlier for after, earlier in zip(by_queue(), before, strict=True)] == [1, 2, 1]


def test_a_publish_that_fails_is_counted(new_app: NewApp) -> None:
    app = new_app({"broker_url": "redis://127.0.0.1:1/0", "task_publish_retry": False})
    app.task(nothing, name="fails to publish", shared=False)
    before = counted("celery_publish_failures_total", task="fails to publish")
    with pytest.raises(OperationalError):
        app.send_task("fails to publish")
    assert counted("celery_publish_failures_total", task="fails to publish") == before + 1


def test_operations_of_a_lapsed_lease_are_counted_from_zero(new_app: NewApp) -> None:
    name = "celery_fenced_operations_total"
    app = new_app()
    for operation in ("acknowledge", "renew", "delay", "reject", "requeue"):
        before = prometheus_client.REGISTRY.get_sample_value(name, {"operation": operation})
        assert before is not None
        signals.operation_fenced.send(sender=app, operation=operation, number=3)
        assert counted(name, operation=operation) == before + 3


# --- Names from messages ---

MANY = 10_000


def test_names_that_the_app_does_not_define_add_no_series(new_app: NewApp) -> None:
    app = new_app()

    def series() -> set[tuple[str, tuple[tuple[str, str], ...]]]:
        found = [sample for metric in prometheus_client.REGISTRY.collect() for sample in metric.samples]
        return {(each.name, tuple(each.labels.items())) for each in found}

    before = series()
    for number in range(MANY):
        name = f"invented {number}"
        letter = dead_letters.letter(Reason.MALFORMED, "error", name, b"}{", 100)
        signals.message_published.send(sender=app, task=name, queue=app.durable.queue_of({"routing_key": name}))
        signals.publish_failed.send(sender=app, task=name, error=OSError())
        signals.message_dead_lettered.send(sender=app, letter=letter)
        signals.outbox_written.send(sender=app, task=name)
        signals.outbox_republished.send(sender=app, task=name, queue=name, age=1)
    labels = {label for _, labels in series() - before for label in labels}
    assert labels <= {("task", "other"), ("queue", "other"), ("reason", "malformed")}
    assert counted("celery_outbox_republished_total", task="other", queue="other") >= MANY


# --- A worker and beat ---

TASKS = """
from celery_durable import PeriodicTask, every


@app.task(name="add", shared=False)
def add(a, b):
    return a + b


@app.task(name="limited", shared=False, rate_limit="12/m")
def limited():
    pass


@app.task(name="fail", shared=False)
def fail():
    raise RuntimeError


@app.task(name="again", bind=True, shared=False, max_retries=1)
def again(self):
    raise self.retry()


@app.task(name="slow", shared=False, time_limit=1, soft_time_limit=0.9, outbox=True)
def slow():
    try:
        time.sleep(9)
    except Exception:
        time.sleep(9)


@app.task(name="deadly", shared=False, max_retries=0)
def deadly():
    os.kill(os.getpid(), 9)


@app.task(name="tick", base=PeriodicTask, shared=False)
def tick():
    note("tick")


app.conf.beat_schedule = {"tick": {"task": "tick", "schedule": every(1)}}
"""


class Served(NamedTuple):
    project: Project
    worker: Program
    ports: dict[str, int]

    def page(self, of: str = "worker") -> str:
        """The metrics of the worker or of beat."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[of]}/metrics", timeout=10) as reply:
            return str(reply.read().decode())

    def sample(self, name: str, of: str = "worker", **labels: str) -> float | None:
        """The value of a sample of the worker or of beat; None if it does not exist."""
        for line in self.page(of).splitlines():
            found = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
            said = dict(re.findall(r'(\w+)="(.*?)"', found[2] or "")) if found else {}
            if found and found[1] == name and labels.items() <= said.items():
                return float(found[3])
        return None

    def wait_for(self, value: float, name: str, of: str = "worker", **labels: str) -> None:
        poll_until(lambda: self.sample(name, of, **labels) == value, f"{name}{labels} to be {value}")


@pytest.fixture(scope="module")
def served(module_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    ports = {"worker": free_port(), "beat": free_port()}
    folders = {name: tmp_path_factory.mktemp(name) for name in ports}

    def project_of(name: str) -> Project:
        return Project(folders[name], module_redis.url, TASKS, chord_overdue_after=1, metrics_port=ports[name])

    with project_of("worker").open() as project, project_of("beat").open() as beat:
        worker = project.worker("-c", "2", PROMETHEUS_MULTIPROC_DIR=str(folders["worker"] / "metrics"))
        beat.start("beat", "beat", "-l", "INFO", "-s", str(folders["beat"] / "schedule"))
        yield Served(project, worker, ports)


def test_each_outcome_of_a_task_is_counted(served: Served) -> None:
    app = served.project.app
    for name in ("fail", "again", "deadly"):
        app.send_task(name)
    app.tasks["slow"].delay()
    for number in range(3):
        app.send_task("add", (number, 1))
    app.send_task("add", (1, 1), expires=-5)
    app.send_task("add", (1, 1), task_id="revoked", countdown=1)
    app.control.revoke("revoked")
    for task, outcome, number in (
        ("add", "success", 3),
        ("fail", "failure", 1),
        ("again", "retry", 1),
        ("again", "failure", 1),
        ("slow", "time_limit", 1),
        ("deadly", "worker_lost", 1),
        ("add", "expired", 1),
        ("add", "revoked", 1),
    ):
        served.wait_for(number, "celery_tasks_total", task=task, queue="celery", outcome=outcome)
    assert served.sample("celery_task_runtime_seconds_count", task="add", queue="celery") == 3
    assert served.sample("celery_task_queue_wait_seconds_count", task="add", queue="celery") == 3
    assert served.sample("celery_task_unstamped_total", task="add") is None
    served.project.stock_app.send_task("add", (1, 1))
    served.wait_for(1, "celery_task_unstamped_total", task="add", queue="celery")


def test_dead_letters_are_counted(served: Served) -> None:
    served.wait_for(1, "celery_dead_letters_total", queue="celery", reason="hard time limit")
    served.project.client.lpush("celery", "}{")
    served.wait_for(1, "celery_dead_letters_total", queue="celery", reason="malformed")


def test_the_slots_of_the_pool(served: Served) -> None:
    assert served.sample("celery_worker_slots") == 2
    served.wait_for(0, "celery_worker_slots_busy")
    for number in range(4):  # the first runs
        served.project.app.send_task("limited", task_id=f"held {number}")
    served.wait_for(3, "celery_worker_prefetched_messages")


def test_what_the_store_holds(served: Served) -> None:
    """Read from the store at each scrape."""
    served.wait_for(0, "celery_outbox_entries")
    assert served.sample("celery_chords_overdue") == 0
    served.project.app.tasks["slow"].apply_async(later=True)
    served.wait_for(1, "celery_outbox_entries")
    served.project.app.durable.chords.begun("lost")
    served.project.client.set(served.project.app.backend.get_key_for_group("lost", ".s"), 2)
    poll_until(lambda: served.project.app.durable.reconcile()["overdue_chords"] == 1, "the chord to be overdue")
    served.wait_for(1, "celery_chords_overdue")
    for task in served.project.client.hkeys("celery-durable:outbox"):  # none if it was published and has ended
        served.project.app.durable.outbox.end(task, 2)


def test_metrics_of_beat(served: Served) -> None:
    poll_until(lambda: served.sample("celery_beat_overdue_seconds", "beat") == 0, "beat to report")
    before = served.sample("celery_beat_last_tick_timestamp_seconds", "beat") or 0.0
    poll_until(
        lambda: (served.sample("celery_beat_last_tick_timestamp_seconds", "beat") or 0.0) > before, "another tick"
    )
    assert 0 <= (served.sample("celery_beat_lateness_seconds", "beat", entry="tick") or 0.0) < 5
    served.project.wait_noted("tick", 2)
    assert (served.sample("celery_published_total", "beat", task="tick", queue="celery") or 0) >= 2
    assert served.sample("celery_beat_overdue_seconds") is None, "a worker reports no tick"


def test_names_in_messages_are_no_labels(served: Served) -> None:
    """Of unknown tasks, callbacks, shadows and routing keys; the worker publishes the callbacks."""
    names = [f"invented {number}" for number in range(100)]
    with served.project.client.pipeline() as pipe:
        for name in names:
            callback = {"task": name, "args": [], "kwargs": {}, "options": {"queue": name}, "immutable": True}
            message = malformed.message(
                [[1, 1], {}, {"callbacks": [callback]}], headers={"shadow": name, "published_at": 1}
            )
            message["properties"]["delivery_info"] = {"exchange": name, "routing_key": name}
            pipe.lpush("celery", json.dumps(message), json.dumps(malformed.message(headers={"task": name})))
        pipe.execute()
    served.wait_for(len(names), "celery_dead_letters_total", queue="celery", reason="unknown task")
    served.wait_for(len(names), "celery_published_total", task="other", queue="other")
    assert "invented" not in served.page()
