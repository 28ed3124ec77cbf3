"""Counts of a pool's children: none is lost when a child dies, none is added twice."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from metrics.exposition import ChildrenCollector
from metrics.tasks import due_at

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
        self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid


@pytest.fixture
def new_child(tmp_path: Path) -> Iterator[Callable[[], Child]]:
    """Starts children that count into `tmp_path`; they are killed at the end."""
    children: list[Child] = []

    def start() -> Child:
        children.append(Child(tmp_path))
        return children[-1]

    yield start
    for child in children:
        child.kill()


def scrape(collector: ChildrenCollector) -> dict[str, float]:
    """Value of each sample, its labels aside."""
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


def test_files_of_dead_children_do_not_pile_up(new_child: Callable[[], Child], tmp_path: Path) -> None:
    collector = ChildrenCollector(tmp_path)
    for _ in range(3):
        child = new_child()
        child.count(1)
        assert list(tmp_path.glob(f"*_{child.pid}.db"))
        child.kill()
        scrape(collector)
        assert not list(tmp_path.glob(f"*_{child.pid}.db"))
    assert len(list(tmp_path.glob("*.db"))) <= 2, "one archive a kind of metric"


def test_a_dead_child_has_no_present_value(new_child: Callable[[], Child], tmp_path: Path) -> None:
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
    collector, seen, barrier = ChildrenCollector(tmp_path), [], threading.Barrier(8)

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


PUBLISHED, LATER, LATEST = 1000.0, 1010.0, 1020.5


def iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


@pytest.mark.parametrize(
    ("published_at", "eta", "redelivered_at", "due"),
    [
        (PUBLISHED, None, None, PUBLISHED),
        (PUBLISHED, iso(LATER), None, LATER),
        (LATER, iso(PUBLISHED), None, LATER),
        (PUBLISHED, iso(LATER), LATEST, LATEST),
        (PUBLISHED, None, LATER, LATER),
        (None, iso(LATER), LATEST, None),
    ],
)
def test_a_task_is_due_at_the_latest_of_its_times_and_unknown_without_a_publish_stamp(
    published_at: float | None, eta: str | None, redelivered_at: float | None, due: float | None
) -> None:
    assert due_at(published_at, eta, redelivered_at) == due
