"""A small Celery project in a folder of its own, with real workers."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

from celery import Celery
from celery.app.trace import trace_task
from kombu import pools
from redis import Redis

import celery_durable

from .poll import poll_until

SOURCES = Path(celery_durable.__file__).parents[1]

# Times of a few seconds that satisfy all inequalities of Config.
SHORT: dict[str, Any] = {
    "lease": 6,
    "lease_renewal": 1.5,
    "visibility_timeout": 7,
    "renew_interval": 1.5,
    "restore_interval": 0.5,
    "restore_mutex_expire": 1,
    "max_delay": 6,
    "min_retry_delay": 0.1,
    "default_retry_delay": 0.2,
    "soft_time_limit": 5,
    "time_limit": 6,
    "soft_shutdown": 1,
    "publish_connect_timeout": 0.5,
    "publish_socket_timeout": 1,
    "republish_after": 9,
    "recheck_after": 1,
    "unknown_task_patience": 4,
    "unknown_task_delay": 0.5,
    "heartbeat_interval": 0.5,
    "watchdog_interval": 0.5,
}

HEADER = """
import os
import time
from pathlib import PosixPath

from celery import Celery
from celery.app.trace import trace_task
from kombu import pools
from celery_durable import Config, install

app = Celery("project")
app.conf.update({conf!r})
durable = install(app, Config(**{config!r}))


def note(key, value="1"):
    durable.store.rpush("noted:" + key, value)
"""

numbers = count()


def environment() -> dict[str, str]:
    """The environment of a process that imports the library from this repository."""
    return {**os.environ, "PYTHONPATH": str(SOURCES), "PYTHONUNBUFFERED": "1"}


def run_python(source: str, *args: str, timeout: float = 120, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a program in an interpreter of its own."""
    return subprocess.run(
        [sys.executable, "-c", source, *args],
        env={**environment(), **variables},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


class Program:
    """A process with a log."""

    def __init__(self, folder: Path, name: str, *args: str, **variables: str) -> None:
        self.log_file = folder / f"{name}.log"
        with self.log_file.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "project", *args],
                cwd=folder,
                env={**environment(), **variables},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def wait_for(self, text: str, timeout: float = 60, times: int = 1) -> None:
        """Wait until the log contains a text so often."""

        def said() -> bool:
            found = self.log.count(text) >= times
            assert found or self.alive, f"ended with {self.process.returncode}:\n{self.log[-5000:]}"
            return found

        poll_until(said, f"{text!r} in {self.log_file.name}", timeout)

    def stop(self, timeout: float = 60) -> int:
        """Send SIGTERM; returns the exit code."""
        self.process.terminate()
        return self.process.wait(timeout)

    def kill(self) -> None:
        """SIGKILL for the process and its children."""
        if self.alive:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)


class Project:
    """`project.py` in a folder: an app that `install` was called for, `note(key, value)`, and the tasks of a test.

    Broker, store and results are one Redis.
    """

    def __init__(
        self, folder: Path, url: str, tasks: str, conf: Mapping[str, Any] | None = None, **config: Any
    ) -> None:
        self.folder, self.url = folder, url
        settings = {"broker_url": url, "result_backend": url, **(conf or {})}
        header = HEADER.format(conf=settings, config={"store": url, **SHORT, **config})
        (folder / "project.py").write_text(header + tasks)
        self.client: Any = Redis.from_url(url, decode_responses=True)
        self._programs: list[Program] = []

    @cached_property
    def module(self) -> Any:
        """The project, imported here as well, to publish with its app."""
        spec = importlib.util.spec_from_file_location(f"project_{next(numbers)}", self.folder / "project.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    @property
    def app(self) -> Any:
        return self.module.app

    @cached_property
    def stock_app(self) -> Any:
        """An app of the same broker without the library."""
        return Celery("stock", broker=self.url, backend=self.url, set_as_current=False)

    def worker(self, *args: str, name: str = "worker", **variables: str) -> Program:
        """A worker that is ready."""
        options = ("--loglevel=INFO", "--hostname", f"{name}@test", *args)
        program = self.start(name, "worker", *options, **variables)
        program.wait_for(f"{name}@test ready.")
        return program

    def start(self, name: str, *args: str, **variables: str) -> Program:
        """`celery -A project …`."""
        program = Program(self.folder, name, *args, **variables)
        self._programs.append(program)
        return program

    def noted(self, key: str) -> list[str]:
        """What tasks have noted under a key."""
        return list(self.client.lrange(f"noted:{key}", 0, -1))

    def wait_noted(self, key: str, times: int = 1, timeout: float = 60) -> list[str]:
        """Wait until tasks have noted a key so often."""
        poll_until(lambda: len(self.noted(key)) >= times, f"{key} to be noted {times} times", timeout)
        return self.noted(key)

    def held(self) -> set[str]:
        """Ids of the tasks whose messages workers hold."""
        return {json.loads(each)[0]["headers"]["id"] for each in self.client.hvals("unacked")}

    @contextmanager
    def open(self) -> Iterator["Project"]:
        """Its programs end with the block, and its connections are closed."""
        try:
            yield self
        finally:
            for program in self._programs:
                program.kill()
            for name in ("module", "stock_app"):
                if name in self.__dict__:
                    close(getattr(self.__dict__[name], "app", self.__dict__[name]))
            self.client.close()


def close(app: Any) -> None:
    """Close an app and its connections in kombu's pools, which all apps of this process share."""
    app.close()
    durable = getattr(app, "durable", None)
    for group in (pools.producers, pools.connections):
        for key, pool in list(group.items()):
            connections = pool if group is pools.connections else pool.connections
            if getattr(connections.connection, "durable", None) is durable:
                pool.force_close_all()
                group.pop(key)


def run_task(task: Any, headers: dict[str, Any], *args: Any) -> Any:
    """Run a message of a task, as a worker's process does; returns its state."""
    request = {"delivery_info": {}, "hostname": "worker@test", **headers}
    info = trace_task(task, headers["id"], args, {}, request, app=task.app).info
    return info.state if info else "SUCCESS"


def run_message(app: Any, payload: bytes | str) -> Any:
    """Run a message taken from a queue, with its arguments, callbacks and chord; returns its task's state."""
    message = json.loads(payload)
    with app.connection_for_read() as connection:
        channel = connection.default_channel
        args, _, embed = channel.Message(message, channel=channel, accept={"application/json"}).decode()
    headers = message["headers"]
    return run_task(app.tasks[headers["task"]], {**headers, **embed}, *args)
