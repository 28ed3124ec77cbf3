"""The library as users install it: its wheel in an empty virtual environment, with the README's two projects.

Workers are killed while they run tasks; then every order is charged, and none twice.
"""

import os
import re
import signal
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from ..poll import poll_until
from ..redis_server import RedisServer

pytestmark = pytest.mark.installed

PACKAGE = Path(__file__).parents[2]
README = (PACKAGE / "README.md").read_text()

ORDERS, CENTS, KILLS = 150, 7, 4
STARTS_WITHIN = 60  # s
# s: the messages of a killed worker are back in their queue after Config.lease, with the stock transport after 90 s.
CHARGED_WITHIN = 240

# The README's task, surrounded by waits, so that a kill may come before its effect or after it.
SLOW = """
import time

from {app} import app
from {module} import charge


@app.task(outbox=True)
def charge_slowly(order, cents):
    time.sleep(0.02)
    charge(order, cents)
    time.sleep(0.02)
"""
# What a Django project has besides the README's file.
DJANGO = {
    "mysite/__init__.py": "from mysite.celery import app as celery_app\n\n__all__ = ['celery_app']\n",
    "mysite/settings.py": (
        "SECRET_KEY = 'test'\n"
        "INSTALLED_APPS = ['orders']\n"
        "CELERY_BROKER_URL = 'redis://localhost:6379/0'\n"
        "CELERY_RESULT_BACKEND = 'redis://localhost:6379/1'\n"
        "CELERY_TASK_ROUTES = {'orders.tasks.*': {'queue': 'orders'}}\n"
    ),
    "orders/__init__.py": "",
    "orders/tasks.py": (
        "from celery import shared_task\n"
        "from mysite.celery import durable\n\n\n"
        "@shared_task(outbox=True)\n"
        "def charge(order, cents):\n"
        "    def effect(pipe):\n"
        "        pipe.incrby('takings', cents)\n\n"
        "    durable.once(f'charged:{order}', effect, ttl=3600)\n"
    ),
}


def from_readme(name: str) -> str:
    """A file of the README: a Python block whose first line is the file's name."""
    return re.findall(rf"^```python\n# {re.escape(name)}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)[0]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library's wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "flit_core.wheel", PACKAGE, "--outdir", folder], check=True)
    (file,) = folder.glob("*.whl")
    return file


class Project:
    """A Celery project in a folder, with an environment of its own."""

    def __init__(self, folder: Path, wheel: Path, app: str, more_packages: list[str]) -> None:
        self._folder, self._app = folder / "project", app
        self._folder.mkdir()
        venv.create(folder / "venv", with_pip=True)
        self.python = str(folder / "venv/bin/python")
        install = [self.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, f"{wheel}[metrics]", *more_packages], check=True)
        self._processes: list[subprocess.Popen[bytes]] = []

    def write(self, files: dict[str, str], redis: RedisServer) -> None:
        """Write the project's files, with the address of the test's Redis."""
        for name, text in files.items():
            file = self._folder / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(text.replace("localhost:6379", f"127.0.0.1:{redis.port}"))

    @property
    def _environment(self) -> dict[str, str]:
        ours = ("PYTHONPATH", "DJANGO_SETTINGS_MODULE", "CELERY_APP")
        found = {name: value for name, value in os.environ.items() if name not in ours}
        return {**found, "DJANGO_SETTINGS_MODULE": "mysite.settings"} if self._app == "mysite" else found

    def run(self, *command: str) -> str:
        """Run a command of the project's environment; returns its output."""
        done = subprocess.run(
            [self.python, *command],
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def publish(self, first: int) -> "subprocess.Popen[bytes]":
        """Start a publisher of orders, numbered from `first`."""
        setup = "import django; django.setup()\n" if self._app == "mysite" else ""
        loop = f"for number in range({first}, {first + ORDERS}): charge_slowly.delay(f'A-{{number}}', {CENTS})"
        program = f"{setup}from slow import charge_slowly\n{loop}"
        return subprocess.Popen([self.python, "-c", program], cwd=self._folder, env=self._environment)

    def start(self, *command: str, ready: str) -> subprocess.Popen[bytes]:
        """Start `celery -A …`; returns once its log says that it is ready."""
        log = self._folder / f"{command[0]}-{len(self._processes)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [self.python, "-m", "celery", "-A", self._app, *command],
                cwd=self._folder,
                env=self._environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._processes.append(process)

        def said() -> bool:
            assert process.poll() is None, log.read_text()
            return ready in log.read_text()

        poll_until(said, f"{ready!r} in {log.name}", STARTS_WITHIN)
        return process

    def worker(self) -> subprocess.Popen[bytes]:
        """Start a worker that consumes all queues."""
        queues = ["--queues=celery,orders", "--include=slow", "--concurrency=2", "--loglevel=INFO"]
        return self.start("worker", *queues, f"--hostname=worker{len(self._processes)}@%h", ready=" ready.")

    def close(self) -> None:
        """Kill the processes that it has started."""
        for process in self._processes:
            kill(process)


def kill(process: "subprocess.Popen[bytes]") -> None:
    """SIGKILL for a process and its children."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


PROJECTS = {
    "plain": ("shop", [], {"shop.py": from_readme("shop.py"), "slow.py": SLOW.format(app="shop", module="shop")}),
    "Django's settings": (
        "mysite",
        ["django==5.2.*"],
        {
            **DJANGO,
            "mysite/celery.py": from_readme("mysite/celery.py"),
            "slow.py": SLOW.format(app="mysite.celery", module="orders.tasks"),
        },
    ),
}


@pytest.fixture(scope="module", params=PROJECTS)
def project(
    request: pytest.FixtureRequest, wheel: Path, module_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Project]:
    """A project on the test's Redis."""
    app, packages, files = PROJECTS[request.param]
    with ExitStack() as stack:
        project = Project(tmp_path_factory.mktemp("installed"), wheel, app, packages)
        stack.callback(project.close)
        module_redis.reset()
        project.write(files, module_redis)
        yield project


def test_killed_workers_lose_nothing_and_apply_nothing_twice(project: Project, module_redis: RedisServer) -> None:
    broker: Any = Redis(port=module_redis.port, db=0, decode_responses=True)
    store: Any = Redis(port=module_redis.port, db=1, decode_responses=True)
    project.start("beat", "--loglevel=INFO", ready="beat: Starting")
    interrupted = 0
    for turn in range(KILLS):
        worker = project.worker()
        before = int(store.get("takings") or 0)
        publisher = project.publish(turn * ORDERS)

        def begun(before: int = before) -> bool:
            return int(store.get("takings") or 0) > before + 10 * CENTS

        poll_until(begun, "some orders charged", 30, interval=0.01)
        kill(worker)
        interrupted += broker.hlen("unacked")
        assert publisher.wait(60) == 0
    project.worker()
    assert interrupted, "no worker held a message when it was killed: nothing was tested"
    wanted = KILLS * ORDERS * CENTS
    poll_until(lambda: int(store.get("takings")) >= wanted, "every order charged", CHARGED_WITHIN)
    poll_until(lambda: not broker.hlen("unacked"), "no message held", CHARGED_WITHIN)
    charged = sum(1 for _ in store.scan_iter("charged:*", count=1000))
    assert {"lost": KILLS * ORDERS - charged, "applied twice": (int(store.get("takings")) - wanted) // CENTS} == {
        "lost": 0,
        "applied twice": 0,
    }


def test_what_came_with_it(project: Project) -> None:
    assert project.run("-m", "celery_durable", "-A", project._app, "dlq") == "no dead letters\n"
    files = project.run("-c", "from importlib.resources import files; print(*files('celery_durable').iterdir())")
    assert "py.typed" in files
    assert (
        project.run(
            "-c", "from importlib.metadata import metadata as m; print(m('celery-durable')['License-Expression'])"
        )
        == "MIT\n"
    )
