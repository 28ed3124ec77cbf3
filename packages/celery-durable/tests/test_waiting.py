"""However long a message waits in a worker with the stock transport, it runs once, and others run in the meantime.

Each pool has a queue of its own. All waits last longer than the visibility timeout, and are under way at once.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .poll import poll_until
from .project import SHORT, Program, Project
from .redis_server import RedisServer

TASKS = """
def task(**options):
    return app.task(bind=True, shared=False, ignore_result=True, **options)


@task(name="quick")
def quick(self):
    note("quick:" + self.request.delivery_info["routing_key"], self.request.id)


@task(name="limited", rate_limit="12/m")
def limited(self):
    note("limited", self.request.id)


@task(name="limited_later")
def limited_later(self):
    note("limited_later", self.request.id)


@task(name="delayed")
def delayed(self):
    note("delayed", self.request.id)


@task(name="delayed_and_limited", rate_limit="12/m")
def delayed_and_limited(self):
    note("delayed_and_limited", self.request.id)


@task(name="retried", max_retries=2)
def retried(self):
    note("retried", f"{self.request.id} {self.request.retries}")
    if self.request.retries < 2:
        raise self.retry(countdown=5.5)


@task(name="long", time_limit=40, soft_time_limit=39)
def long(self):
    note("long started", self.request.id)
    time.sleep(2.2 * durable.config.visibility_timeout)
    note("long", self.request.id)


@task(name="held")
def held(self):
    time.sleep(4)
    note("held", self.request.id)
"""

VISIBILITY = SHORT["visibility_timeout"]
POOLS = ["prefork", "threads"]


@pytest.fixture(scope="module")
def project(module_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A worker of each pool, and all that waits; and a worker that was killed while it held messages."""
    folder: Path = tmp_path_factory.mktemp("waiting")
    with Project(folder, module_redis.url, TASKS, transport="stock").open() as project:
        programs = [
            project.start(pool, "worker", "-l", "INFO", "-n", f"{pool}@test", "-P", pool, "-c", "2", "-Q", pool)
            for pool in POOLS
        ]
        killed = project.start("killed", "worker", "-l", "INFO", "-n", "killed@test", "-c", "2", "-Q", "killed")
        for program in (*programs, killed):
            program.wait_for("ready.")
        project.app.control.rate_limit("limited_later", "12/m", reply=True, timeout=5)
        kill_while_it_holds(project, killed)
        send_all(project)
        yield project


def send(project: Project, queue: str, name: str, number: int = 1, **options: float) -> None:
    """By name, from an app without the library: it refuses no delay and knows no time limit."""
    for each in range(number):
        project.stock_app.send_task(name, task_id=f"{queue} {name} {each}", queue=queue, **options)


def send_all(project: Project) -> None:
    for pool in POOLS:
        send(project, pool, "long")
        send(project, pool, "limited", 4)
        send(project, pool, "limited_later", 4)
        send(project, pool, "delayed", 3, countdown=2.2 * VISIBILITY)
        send(project, pool, "delayed_and_limited", 3, countdown=2)
        send(project, pool, "retried")


def kill_while_it_holds(project: Project, worker: Program) -> None:
    """Kill it while one message runs, one waits for its ETA, and one for its rate limit."""
    send(project, "killed", "limited", 2)
    send(project, "killed", "held")
    send(project, "killed", "delayed", countdown=3)
    project.wait_noted("limited", 1)
    held = {"killed limited 1", "killed held 0", "killed delayed 0"}
    poll_until(lambda: project.held() == held, f"no messages but {held} to be held")
    worker.kill()
    project.start("heir", "worker", "-l", "INFO", "-n", "heir@test", "-c", "1", "-Q", "killed")


@pytest.mark.parametrize("pool", POOLS)
def test_other_messages_of_the_queue_run(project: Project, pool: str) -> None:
    project.client.delete(f"noted:quick:{pool}")
    assert project.noted("long") == []
    for _ in range(5):
        project.stock_app.send_task("quick", queue=pool)
    project.wait_noted(f"quick:{pool}", 5, timeout=30)
    assert project.noted("long") == [], "while the long one runs"


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize(
    ("name", "number"), [("limited", 4), ("limited_later", 4), ("delayed", 3), ("delayed_and_limited", 3), ("long", 1)]
)
def test_each_runs(project: Project, pool: str, name: str, number: int) -> None:
    def ran() -> set[str]:
        return {noted for noted in project.noted(name) if noted.startswith(pool)}

    poll_until(lambda: len(ran()) == number, f"{number} tasks {name} of {pool} to run", timeout=120)


@pytest.mark.parametrize("pool", POOLS)
def test_each_retry_runs(project: Project, pool: str) -> None:
    poll_until(lambda: f"{pool} retried 0 2" in project.noted("retried"), "the last retry", timeout=60)


@pytest.mark.parametrize("name", ["held 0", "delayed 0", "limited 1"])
def test_what_a_killed_worker_held_runs_elsewhere(project: Project, name: str) -> None:
    key = name.partition(" ")[0]
    poll_until(lambda: f"killed {name}" in project.noted(key), f"{name} to run", timeout=90)


def test_none_ran_twice(project: Project) -> None:
    """Checked after all tasks are done, when no message can be redelivered."""
    client = project.client
    poll_until(lambda: not client.hlen("unacked") and not client.exists(*POOLS, "killed"), "all to be done", timeout=90)
    time.sleep(1)  # of a message that came back the worker would take hold now
    assert not client.hlen("unacked")
    for name in ("limited", "limited_later", "delayed", "delayed_and_limited", "retried", "long started", "held"):
        noted = project.noted(name)
        assert len(noted) == len(set(noted)), name


def test_none_became_a_dead_letter(project: Project) -> None:
    assert not project.client.exists("celery-durable:dead-letters")
