"""The table of queues, and the files generated from it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from queues import QUEUES

ROOT = Path(__file__).parents[2]
KNOWS_QUEUES = (
    "compose.yaml",
    ".env.example",
    "prometheus/prometheus.yml",
    "prometheus/rules/queues.yml",
    "services/redis/broker.acl.template",
)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the table, the files that name a queue, and the script that writes them."""
    for name in (*KNOWS_QUEUES, "services/celery/queues.py", "scripts/queues.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def write(project: Path) -> subprocess.CompletedProcess[str]:
    """Run scripts/queues.py."""
    return subprocess.run([sys.executable, project / "scripts/queues.py"], capture_output=True, text=True, check=False)


def add(project: Path, line: str) -> None:
    """Add a line to the table, whatever queues it has."""
    with (project / "services/celery/queues.py").open("a") as table:
        table.write(f"{line}\n")


def test_what_is_written_from_the_table_is_up_to_date(project: Path) -> None:
    done = write(project)
    assert (done.returncode, done.stdout) == (0, ""), "run make queues, and commit what it wrote"


def test_another_queue_reaches_every_file_that_knows_one(project: Path) -> None:
    add(project, 'QUEUES = (*QUEUES, TaskQueue("media", concurrency=4, max_wait=60))')
    done = write(project)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) >= set(KNOWS_QUEUES)
    compose = yaml.safe_load((project / "compose.yaml").read_text())
    names = [queue.name for queue in QUEUES]
    worker = compose["services"]["worker-media"]
    assert worker["command"] == ["python", "worker.py", "media", "--concurrency=${WORKER_MEDIA_CONCURRENCY}"]
    assert compose["services"]["queue-exporter"]["environment"]["QUEUES"] == ",".join([*names, "media"])
    assert "\nWORKER_MEDIA_CONCURRENCY=4\n" in (project / ".env.example").read_text()
    assert "worker-media" in (project / "prometheus/prometheus.yml").read_text()
    assert "~media*" in (project / "services/redis/broker.acl.template").read_text()
    rules = yaml.safe_load((project / "prometheus/rules/queues.yml").read_text())["groups"][0]["rules"]
    (limit,) = [rule for rule in rules if rule["labels"]["queue"] == "media"]
    assert (limit["expr"], limit["labels"]["severity"]) == ("vector(60)", "warning")
    assert write(project).stdout == "", "a second time changes nothing"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('QUEUES = (TaskQueue("Low"),)', "queue 'Low': a name is a lower-case letter, then"),
        ("QUEUES = (HIGH, LOW, LOW)", "QUEUES: high, low, low; it must list each queue once"),
        ("QUEUES = (HIGH,)", "DEFAULT: low; it must be one of QUEUES"),
        ('TaskQueue("a", max_wait=0)', "queue a: max_wait is 0; it must be a whole number, at least 1"),
        ('TaskQueue("a", replicas=-1)', "queue a: replicas is -1; it must be a whole number, at least 0"),
        ("QUEUES = (HIGH, LOW", "was never closed"),
    ],
)
def test_a_table_that_cannot_be_used_is_named_and_changes_nothing(project: Path, line: str, said: str) -> None:
    before = {name: (project / name).read_text() for name in KNOWS_QUEUES}
    add(project, line)
    done = write(project)
    assert done.returncode == 1
    assert "queues: services/celery/queues.py: " in done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert {name: (project / name).read_text() for name in KNOWS_QUEUES} == before


def test_a_file_without_its_marks_is_named(project: Path) -> None:
    compose = project / "compose.yaml"
    compose.write_text(compose.read_text().replace("# <<< queues", "#"))
    done = write(project)
    assert done.returncode == 1
    assert "queues: compose.yaml: it must have 2 blocks" in done.stderr
