"""A real Redis for unit tests: the stack's image in a container, on a free port of the loopback."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from stack.poll import poll_until

PROJECT = Path(__file__).parents[2]


def free_port() -> int:
    """A TCP port of the loopback interface on which nothing listens now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def redis_image() -> str:
    """REDIS_IMAGE from the environment, else as compose reads it: the last such line of .env (or of .env.example)."""
    if image := os.environ.get("REDIS_IMAGE"):
        return image
    env_file = next(file for file in (PROJECT / ".env", PROJECT / ".env.example") if file.exists())
    lines = [line for line in env_file.read_text().splitlines() if line.startswith("REDIS_IMAGE=")]
    return lines[-1].removeprefix("REDIS_IMAGE=")


class RedisServer:
    """An empty Redis whose default user has all permissions. With an AOF: our programs refuse a Redis without one."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.client = redis.Redis(port=self.port, socket_timeout=30)
        self._container = _docker(
            *("run", "--detach", "--label", "celery-stack.unit-test", "--publish", f"127.0.0.1:{self.port}:6379"),
            *(redis_image(), "redis-server", "--save", "", "--appendonly", "yes", "--protected-mode", "no"),
        )
        self._await_ping()

    def remove(self) -> None:
        """Stop and remove it."""
        self.client.close()
        _docker("rm", "--force", "--volumes", self._container)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Stopped within this block; afterwards it runs again, empty and without users."""
        _docker("stop", "--time", "2", self._container)
        try:
            yield
        finally:
            _docker("start", self._container)
            self._await_ping()
            self.client.flushall()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Within this block it accepts connections and does not answer."""
        _docker("kill", "--signal", "STOP", self._container)  # `docker pause` fails sometimes on a busy machine
        try:
            yield
        finally:
            _docker("kill", "--signal", "CONT", self._container)
            self._await_ping()

    def reset(self) -> None:
        """Remove all data and all users but the default one."""
        self.client.flushall()
        for user in set(self.client.acl_users()) - {"default"}:
            self.client.acl_deluser(user)
        self.client.config_resetstat()

    def _await_ping(self) -> None:
        def answers() -> bool:
            try:
                return bool(self.client.ping())
            except redis.RedisError:
                return False

        poll_until(answers, f"Redis on port {self.port} to answer", timeout=30)


def _docker(*args: str) -> str:
    done = subprocess.run(["docker", *args], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"docker {' '.join(args)}: {done.stderr.strip()}")
    return done.stdout.strip()
