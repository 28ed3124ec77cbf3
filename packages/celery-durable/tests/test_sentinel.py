"""A broker behind Redis Sentinel: workers use the stock transport, say so, and follow a failover."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from .poll import poll_until
from .project import Project
from .redis_server import RedisServer, docker, free_port, redis_image
from .test_atomic_workers import STEPS, TASKS

# In a folder of its own: a master, its replica, and a Sentinel that has the say alone.
SERVERS = """
mkdir master replica
redis-server --bind 127.0.0.1 --port {master} --dir master --save "" --appendonly yes &
redis-server --bind 127.0.0.1 --port {replica} --dir replica --save "" --appendonly yes --replicaof 127.0.0.1 {master} &
cat > sentinel.conf <<END
bind 127.0.0.1
port {sentinel}
sentinel monitor shop 127.0.0.1 {master} 1
sentinel down-after-milliseconds shop 1000
sentinel failover-timeout shop 10000
END
exec redis-server sentinel.conf --sentinel
"""


@dataclass
class Guarded:
    """The ports of the servers."""

    master: int
    replica: int
    sentinel: int

    @property
    def url(self) -> str:
        return ";".join([f"sentinel://127.0.0.1:{self.sentinel}/0"] * 2)

    def master_port(self) -> int:
        """As Sentinel says."""
        with redis.Redis(port=self.sentinel, socket_timeout=5) as client:
            return int(client.sentinel_master("shop")["port"])

    def has_replica(self) -> bool:
        with suppress(redis.RedisError), redis.Redis(port=self.sentinel, socket_timeout=5) as client:
            return any(each["master-link-status"] == "ok" for each in client.sentinel_slaves("shop"))
        return False

    def end_master(self) -> None:
        with redis.Redis(port=self.master) as client, suppress(redis.ConnectionError):
            client.shutdown(nosave=True, now=True, force=True)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Guarded]:
    guarded = Guarded(free_port(), free_port(), free_port())
    script = SERVERS.format(**vars(guarded))
    if shutil.which("redis-server"):
        folder = tmp_path / "sentinel"
        folder.mkdir()
        process = subprocess.Popen(["sh", "-c", script], cwd=folder, stdout=subprocess.DEVNULL, start_new_session=True)

        def end() -> None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)
    else:
        options = ["--detach", "--label", "celery-durable.test", "--network", "host"]
        container = docker("run", *options, redis_image(), "sh", "-c", script)

        def end() -> None:
            docker("rm", "--force", "--volumes", container)

    poll_until(guarded.has_replica, "Sentinel to know a replica of the master", timeout=60)
    yield guarded
    end()


def test_a_worker_follows_a_failover_and_says_what_is_lost(
    guarded: Guarded, redis_server: RedisServer, tmp_path: Path
) -> None:
    options = {**STEPS["broker_transport_options"], "master_name": "shop"}
    conf = {"broker_url": guarded.url, "broker_transport_options": options}
    with Project(tmp_path, redis_server.url, TASKS, conf, transport="atomic").open() as project:
        worker = project.worker("-c", "1")
        assert "transport: stock is used, not atomic: broker_url is sentinel://" in worker.log
        project.app.tasks["quick"].delay("before")
        project.wait_noted("ran")
        with project.app.durable.batch():
            project.app.tasks["quick"].delay("in a batch")
        project.wait_noted("ran", 2)
        guarded.end_master()
        poll_until(lambda: guarded.master_port() == guarded.replica, "the failover", timeout=60)
        project.app.tasks["quick"].delay("after")
        assert project.wait_noted("ran", 3, timeout=90) == ["before", "in a batch", "after"]
        poll_until(project.app.durable.workers, "the worker to be registered")
        assert worker.alive


def test_it_needs_the_name_of_the_master(redis_server: RedisServer, tmp_path: Path) -> None:
    conf = {"broker_url": "sentinel://127.0.0.1:1"}
    with Project(tmp_path, redis_server.url, TASKS, conf).open() as project:
        started = project.start("refused", "worker", "-c", "1")
        assert started.process.wait(60) == 1
        assert "broker_transport_options.master_name: is missing; sentinel:// needs it" in started.log
