"""The stack under test: a separate Compose project, used from outside as by a user."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from python_on_whales import Container, DockerClient
from python_on_whales.exceptions import DockerException

from settings import DELIVERY
from stack import inside
from stack.inside import Inside
from stack.poll import poll_until
from stack.services import SERVICES, Service
from stack.web import Prometheus

ROOT = Path(__file__).parents[2]
PROJECT = "celery-stack-test"
HEALTHY_WITHIN = 120  # s; about 20 when nothing else runs
# s: a killed worker's messages are back in their queue (docs/delivery.md).
REDELIVERED_WITHIN = (
    DELIVERY.lease + DELIVERY.lease_renewal
    if DELIVERY.transport == "atomic"
    else DELIVERY.visibility_timeout + DELIVERY.restore_interval + DELIVERY.restore_mutex_expire + 1
)
LAST_LINES = 8


def defaults() -> dict[str, str]:
    """Every setting as in .env.example, not .env, so that a running stack is never disturbed and an
    external Redis is never used; images and profiles are those of .env. Ports are free ones."""
    lines = re.findall(r"^(\w+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE)
    kept = {name: value for name, value in lines if name != "COMPOSE_PROFILES" and not name.endswith("_IMAGE")}
    ports = {name: "0" for name in kept if name.endswith("_PORT")}
    transport = os.environ.get("TRANSPORT", kept["TRANSPORT"])  # the tests' own settings read it as well
    return {**kept, **ports, "COMPOSE_PROJECT_NAME": PROJECT, "TRANSPORT": transport}


def service_of(container: Container) -> str:
    """Name of a container's service."""
    return (container.config.labels or {})["com.docker.compose.service"]


def changed_app(folder: Path, changes: Iterable[tuple[str, str, str]]) -> Path:
    """A copy of the Celery services' code in this folder, to be mounted over /app.

    Each change is a file below services/celery, a text that it has once, and its replacement.
    """
    app = folder / "app"
    shutil.copytree(ROOT / "services/celery", app, ignore=shutil.ignore_patterns("__pycache__"))
    for path, old, new in changes:
        text = (app / path).read_text()
        assert text.count(old) == 1, f"{path} does not have once: {old}"
        (app / path).write_text(text.replace(old, new))
    subprocess.run(["chmod", "-R", "a+rX", app], check=True)
    return app


running: list["Stack"] = []  # what `up` has started and `down` not yet removed


class Stack:
    """Compose for one project, and the addresses of what it runs."""

    def __init__(self, project: str = PROJECT, *more_files: Path) -> None:
        """`more_files` are Compose files that change something of compose.yaml."""
        self.project = project
        self.files: list[str | Path] = [ROOT / "compose.yaml", *more_files]
        self.docker = DockerClient(compose_files=self.files, compose_project_name=project)
        self.compose = self.docker.compose
        self.prometheus = Prometheus(lambda: self.url("prometheus"))

    # --- Up and down ---

    def up(self, *services: str) -> None:
        """Start these services, or all, with empty volumes, and wait until everything is healthy."""
        self.down()
        running.append(self)
        self.compose.up(list(services) or None, detach=True, quiet=True)
        self.wait_healthy()

    def down(self) -> None:
        """Remove everything, including data."""
        if self in running:
            running.remove(self)
        self.close()
        for container in self.containers(one_off=True):  # of an interrupted run; Compose leaves them
            with suppress(DockerException):  # it has ended meanwhile
                container.remove(force=True)
        everything = DockerClient(compose_files=self.files, compose_project_name=self.project, compose_profiles=["*"])
        everything.compose.down(volumes=True, remove_orphans=True, quiet=True)

    def close(self) -> None:
        """End the container of `inside`, if there is one."""
        if "inside" in self.__dict__:
            self.inside.close()
            del self.inside

    @cached_property
    def inside(self) -> Inside:
        """A client container that runs functions of stack/inside.py."""
        run = ["run", "--rm", "--no-deps", "--no-TTY", "--interactive", "--env", "PYTHONPATH=/app"]
        run += ["--volume", f"{ROOT}/tests/stack/inside.py:/inside.py:ro"]
        return Inside([*self.compose_command, *run, "client", "python", "/inside.py"])

    @property
    def compose_command(self) -> list[str]:
        """`docker compose` for this project."""
        files = [part for file in self.files for part in ("--file", str(file))]
        return ["docker", "compose", "--project-name", self.project, *files]

    # --- Services and containers ---

    @cached_property
    def enabled(self) -> set[str]:
        """Services that `up` starts with the profiles in .env."""
        return set(self.compose.config(return_json=True)["services"])

    @property
    def services(self) -> list[Service]:
        """Promises of the services that were started."""
        return [service for service in SERVICES if service.name in self.enabled]

    def containers(self, service: str = "", one_off: bool = False) -> list[Container]:
        """Containers of a service, or of all, in any state; those of services, or those of `compose run`."""
        filters = [
            ("label", f"com.docker.compose.project={self.project}"),
            ("label", f"com.docker.compose.oneoff={one_off}"),
        ]
        if service:
            filters.append(("label", f"com.docker.compose.service={service}"))
        return self.docker.container.list(all=True, filters=filters)  # type: ignore[arg-type]

    def container(self, service: str) -> Container:
        """The one container of a service. The client's is that of `inside`."""
        if service == "client":
            return self.docker.container.inspect(self.inside.call(inside.hostname))
        (one,) = self.containers(service)
        return one

    def url(self, service: str) -> str:
        """Address of a published service. Read again each time, since a restart publishes another port."""
        port = next(s.port for s in SERVICES if s.name == service)
        host, published = self.compose.port(service, str(port))
        if not published:
            raise LookupError(f"{service} has no published port: is it running?")
        return f"http://{host}:{published}"

    def unhealthy(self, *services: str) -> list[str]:
        """Containers that do not run or are not healthy, with their state."""
        found = []
        for container in self.containers():
            if services and service_of(container) not in services:
                continue
            state = container.state
            health = state.health.status if state.health else "healthy"
            if state.status != "running" or health != "healthy":
                found.append(f"{container.name}: {state.status}, {health}")
        return found

    def wait_healthy(self, *services: str, timeout: float = HEALTHY_WITHIN) -> None:
        """Wait until the named services, or all, are healthy."""
        what = " ".join(services) or "every service"
        deadline = time.monotonic() + timeout
        while unhealthy := self.unhealthy(*services):
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"timed out after {timeout:g} s waiting for {what} to be healthy; " + "; ".join(unhealthy)
                )
            time.sleep(0.5)

    def wait_idle(self, timeout: float = 120) -> None:
        """Wait until no message waits or is unacknowledged. This happens under `steady` traffic too."""
        poll_until(lambda: self.inside.call(inside.backlog) == 0, "empty queues", timeout)

    def scale(self, **replicas: int) -> None:
        """`docker compose up -d --scale service=n --no-recreate`; dashes of service names are underscores here."""
        scales = {name.replace("_", "-"): number for name, number in replicas.items()}
        self.compose.up(list(scales), scales=scales, recreate=False, detach=True, quiet=True)

    @contextmanager
    def stopped(self, *services: str) -> Iterator[None]:
        """Services that are stopped within the block, and healthy again afterwards."""
        try:
            self.compose.stop(list(services))
            yield
        finally:
            self.compose.start(list(services))
            self.wait_healthy(*services)

    # --- Faults and attempts ---

    def crash(self, *services: str) -> None:
        """SIGKILL all containers of services at once, as the out-of-memory killer would; wait for their restart.

        A paused container is killed in its frozen state.
        """
        containers = [container for service in services for container in self.containers(service)]
        restarts = {container.id: container.restart_count or 0 for container in containers}
        self.send_signal(signal.SIGKILL, *containers)
        for container in containers:
            if container.state.paused:
                container.unpause()

        def restarted() -> bool:
            now = {container.id: container for service in services for container in self.containers(service)}
            return all((now[key].restart_count or 0) > old and now[key].state.running for key, old in restarts.items())

        poll_until(restarted, f"{', '.join(services)} restarted by the engine", 30)
        self.wait_healthy()

    def send_signal(self, number: int, *containers: Container) -> None:
        """Send a signal to the containers' first programs, by host PID.

        After `docker kill` Docker restarts nothing: it counts as a manual stop. The signal comes from a container in
        the host's PID namespace, so it works for every user of the engine, and for a remote engine.
        """
        pids = [str(container.state.pid) for container in containers]
        program = f"import os, sys\nfor pid in sys.argv[1:]: os.kill(int(pid), {number:d})"
        self.python_as_root(program, *pids, pid="host", networks=["none"])

    def python_as_root(self, program: str, *arguments: str, **options: Any) -> str:
        """Run a Python program as root in a new container with the namespaces of `options`; returns its output."""
        output = self.docker.run(
            self.celery_image, ["-c", program, *arguments], entrypoint="python3", user="root", remove=True, **options
        )
        return str(output).strip()

    def start_client(self, name: str, *command: str, options: Sequence[str] = ()) -> None:
        """Start a command in a client container with this name; `options` are those of `compose run`."""
        run = ["run", "--rm", "--no-deps", "--detach", f"--name={name}", *options, "client"]
        command_line = [*self.compose_command, *run, *command]
        subprocess.run(command_line, check=True, capture_output=True, text=True, start_new_session=True)

    @cached_property
    def celery_image(self) -> str:
        """The image that probes run in: ours, since it exists and has Python."""
        return str(self.compose.config(return_json=True)["services"]["worker-low"]["image"])

    def probe(self, container: Container, connect: list[tuple[str, int]]) -> dict[str, Any]:
        """The output of stack/probe.py beside a container; it tries to connect to each (host, port)."""
        output = self.docker.run(
            self.celery_image,
            ["-c", (ROOT / "tests/stack/probe.py").read_text(), json.dumps({"connect": connect})],
            entrypoint="python3",
            user=":".join(self.user_of(container)),
            pid=f"container:{container.id}",
            networks=[f"container:{container.id}"],
            cap_drop=["ALL"],
            security_options=["no-new-privileges"],
            read_only=True,
            remove=True,
        )
        assert isinstance(output, str)
        return dict(json.loads(output))

    def user_of(self, container: Container) -> tuple[str, str]:
        """Numeric user and group of a container's first process, as the engine sees it."""
        output = self.docker_output("top", container.id, "-eo", "pid,uid,gid")
        first = output.splitlines()[1].split()
        return first[1], first[2]

    def docker_output(self, *arguments: str) -> str:
        """The output of a docker command that python-on-whales has no method for."""
        from python_on_whales.utils import run

        return str(run(["docker", *arguments]))

    # --- When a test fails ---

    def report(self) -> str:
        """State and last log lines of each container."""
        parts = []
        for container in sorted(self.containers(), key=lambda c: c.name):
            state = container.state
            health = state.health.status if state.health else "no health check"
            line = f"{container.name}: {state.status}, {health}, exit code {state.exit_code}"
            line += f", restarts {container.restart_count}"
            try:
                logs = str(container.logs(tail=LAST_LINES))
            except DockerException as error:
                logs = str(error)
            parts.append("\n    ".join([line, *logs.splitlines()]))
        return "\n".join(parts)
