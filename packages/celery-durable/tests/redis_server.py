"""A real Redis for tests: a process of the local `redis-server`, or a container where there is none."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import redis

from .poll import poll_until

DEFAULT_IMAGE = "redis:8"
OPTIONS = ("--save", "", "--appendonly", "yes", "--protected-mode", "no")


def free_port() -> int:
    """A TCP port of the loopback interface on which nothing listens now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def redis_image() -> str:
    """REDIS_IMAGE from the environment, else the last such line of the repository's .env."""
    if image := os.environ.get("REDIS_IMAGE"):
        return image
    env_file = Path(__file__).parents[3] / ".env"
    lines = env_file.read_text().splitlines() if env_file.exists() else []
    images = [line.removeprefix("REDIS_IMAGE=") for line in lines if line.startswith("REDIS_IMAGE=")]
    return images[-1] if images else DEFAULT_IMAGE


def listen(port: int, tls: str) -> list[str]:
    """Options of redis-server."""
    if not tls:
        return ["--port", str(port)]
    certificate = ["--tls-cert-file", f"{tls}/cert.pem", "--tls-key-file", f"{tls}/key.pem"]
    return ["--port", "0", "--tls-port", str(port), *certificate, "--tls-auth-clients", "no"]


class Host(Protocol):
    """The process or container of a Redis. Its data survives `stop` and `kill`."""

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def signal(self, number: signal.Signals) -> None: ...
    def remove(self) -> None: ...


class Process:
    """Of the local `redis-server`, with its data in a folder of its own."""

    def __init__(self, port: int, tls: Path | None) -> None:
        self._folder = tempfile.mkdtemp(prefix="celery-durable-redis-")
        listening = listen(port, str(tls) if tls else "")
        self._command = ["redis-server", "--bind", "127.0.0.1", "--dir", self._folder, *listening, *OPTIONS]

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, start_new_session=True)

    def stop(self) -> None:
        self.signal(signal.SIGTERM)
        self._process.wait(30)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)
        if number == signal.SIGKILL:
            self._process.wait(30)

    def remove(self) -> None:
        self.signal(signal.SIGKILL)
        shutil.rmtree(self._folder)


class Container:
    """Of the image that REDIS_IMAGE names."""

    def __init__(self, port: int, tls: Path | None) -> None:
        volume = ("--volume", f"{tls}:/tls:ro") if tls else ()
        self._id = docker(
            *("create", "--label", "celery-durable.test", "--publish", f"127.0.0.1:{port}:6379", *volume),
            *(redis_image(), "redis-server", *listen(6379, "/tls" if tls else ""), *OPTIONS),
        )

    def start(self) -> None:
        docker("start", self._id)

    def stop(self) -> None:
        docker("stop", "--time", "2", self._id)

    def signal(self, number: signal.Signals) -> None:
        docker("kill", "--signal", number.name, self._id)  # `docker pause` fails sometimes on a busy machine
        if number == signal.SIGKILL:
            docker("wait", self._id)

    def remove(self) -> None:
        docker("rm", "--force", "--volumes", self._id)


class RedisServer:
    """A Redis that is empty at first; its default user has all permissions."""

    def __init__(self, in_container: bool = False, tls: Path | None = None) -> None:
        """In a container even where a local `redis-server` is: for what needs the version of REDIS_IMAGE. `tls`: a
        folder with the server's `cert.pem` and `key.pem`; then it accepts only TLS."""
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        if tls:
            self.url = f"rediss://127.0.0.1:{self.port}/0?ssl_cert_reqs=required&ssl_ca_certs={tls}/cert.pem"
        self.client = redis.Redis.from_url(self.url, socket_timeout=30)
        local = shutil.which("redis-server") and not in_container
        self._host: Host = (Process if local else Container)(self.port, tls)
        self.start()

    @property
    def version(self) -> tuple[int, ...]:
        """Of the server: (8, 0, 2)."""
        return tuple(int(part) for part in self.client.info("server")["redis_version"].split("."))

    def start(self) -> None:
        """Start it; after `kill`, with its data."""
        self._host.start()
        self._await_ping()

    def kill(self) -> None:
        """End it with SIGKILL."""
        self._host.signal(signal.SIGKILL)

    def remove(self) -> None:
        """Stop and remove it."""
        self.client.close()
        self._host.remove()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Stopped within this block; afterwards it runs again, empty and without users."""
        self._host.stop()
        try:
            yield
        finally:
            self.start()
            self.reset()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Within this block it accepts connections and does not answer."""
        self._host.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._host.signal(signal.SIGCONT)
            self._await_ping()

    def reset(self) -> None:
        """Remove all data, all users but the default one, and the configuration that a test has set."""
        self.client.config_set("maxmemory", 0)
        self.client.flushall()
        self.client.script_flush()
        for user in set(self.client.acl_users()) - {"default"}:
            self.client.acl_deluser(user)
        self.client.config_resetstat()

    def _await_ping(self) -> None:
        poll_until(self.client.ping, f"Redis on port {self.port} to answer", timeout=60)


def docker(*args: str) -> str:
    """What docker printed. Raises RuntimeError."""
    done = subprocess.run(["docker", *args], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"docker {' '.join(args)}: {done.stderr.strip()}")
    return done.stdout.strip()
