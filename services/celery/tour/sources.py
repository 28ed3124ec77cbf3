"""Evidence from other sources: remote control, notes of tasks, metrics, Flower, Celery's API."""

import base64
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from celery import states
from celery.result import AsyncResult
from celery.schedules import BaseSchedule

from celery_app import app, durable
from settings import settings
from tasks.notes import key
from tour.evidence import Seen
from tour.waiting import PATIENCE, UnavailableError, describe, until

T = TypeVar("T")

# What lessons revoke besides ids of their tasks.
REVOKED, REVOKED_STAMP = "an-id-that-is-revoked", 'stamp:["order", "tour-'


# --- Celery's API ---


def returned(call: Callable[[], T]) -> Seen[T]:
    """The return value of a call of Celery's API."""
    return Seen(call(), "Celery's API")


def raised(call: Callable[[], object]) -> Seen[str]:
    """The error that a call raises, as text."""
    try:
        call()
    except Exception as error:
        return Seen(describe(error), "Celery's API")
    return Seen("nothing was raised", "Celery's API")


def due(schedule: BaseSchedule) -> Seen[float]:
    """When a schedule is due next (epoch s)."""
    now = datetime.now(UTC)
    return Seen(now.timestamp() + schedule.remaining_estimate(now).total_seconds(), "Celery's schedule")


def seconds_until(text: str) -> float:
    """Seconds from now to a time in ISO 8601."""
    return datetime.fromisoformat(text).timestamp() - time.time()


def printed(module: str, *arguments: str, **process: Any) -> Seen[list[str]]:
    """The lines that a module prints when it runs as a program, with TOUR_PROCESS (tour/app.py). Raises
    CalledProcessError if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env={**os.environ, "TOUR_PROCESS": json.dumps(process)},
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    return Seen(done.stdout.splitlines(), "its output")


# --- What tasks store in redis-results ---


def noted(name: str, count: int = 0) -> Seen[list[str]]:
    """The lines that tasks have noted under a name (tasks/notes.py), once there are `count`."""

    def lines() -> list[str]:
        return list(durable.store.lrange(key(name), 0, -1))

    until(lambda: len(lines()) >= count, f"{count} lines noted under {name}")
    return Seen(lines(), "redis-results")


def redis(*command: Any) -> Seen[Any]:
    """The reply of redis-results to a command."""
    return Seen(durable.store.execute_command(*command), "redis-results")


# --- Remote control ---


def inspect(what: str, node: str, least: int = 0) -> Seen[Any]:
    """The answer of one worker (or beat) to `celery inspect …`; repeated until it answers, with `least` items.

    A worker gets no command that is sent before it listens, which is a moment after its log says that it is ready.
    """

    def ask() -> dict[str, Any]:
        answers = dict(getattr(app.control.inspect([node], timeout=3, limit=1), what)() or {})
        return answers if len(answers.get(node) or ()) >= least else {}

    return Seen(until(ask, f"{node} to answer `inspect {what}`")[node], "the worker's answer")


def pool_size(node: str, least: int) -> Seen[int]:
    """The number of processes in a worker's pool, once there are `least`."""

    def size() -> int:
        return len(inspect("stats", node).value["pool"]["processes"])

    until(lambda: size() >= least, f"{least} processes of {node}")
    return Seen(size(), "the worker's answer")


def replied(replies: list[dict[str, Any]]) -> Seen[dict[str, Any]]:
    """The workers' replies to a command of `app.control`, by node."""
    return Seen({node: answer for reply in replies for node, answer in reply.items()}, "the worker's answer")


# --- HTTP inside the stack ---


def _get(url: str, login: tuple[str, str] | None = None) -> str:
    request = Request(url)  # noqa: S310 - addresses of our own containers
    if login:
        request.add_header("Authorization", "Basic " + base64.b64encode(":".join(login).encode()).decode())
    with urlopen(request, timeout=5) as response:  # noqa: S310
        return str(response.read().decode())


def counted(task: str) -> Seen[float]:
    """The successes of a task, summed over the containers of worker-low."""
    line = re.compile(rf'^celery_tasks_total{{(?=.*outcome="success").*task="{task}".*}} (\S+)$', re.MULTILINE)
    addresses = {info[4][0] for info in socket.getaddrinfo("worker-low", settings.metrics_port)}
    texts = [_get(f"http://{address}:{settings.metrics_port}/metrics") for address in addresses]
    return Seen(sum(float(found) for text in texts for found in line.findall(text)), "the workers' metrics")


class Flower:
    """Flower's API."""

    PASSWORD = Path("/run/secrets/flower_password")

    def get(self, path: str, login: bool = True) -> Seen[Any]:
        """The JSON at a path. Raises HTTPError if it is refused, UnavailableError if Flower does not answer."""
        try:
            credentials = ("admin", self.PASSWORD.read_text().strip()) if login else None
            return Seen(json.loads(_get(f"http://flower:5555{path}", credentials)), "Flower's API")
        except HTTPError:
            raise
        except OSError as error:
            raise UnavailableError(
                f"Flower does not answer ({error}): `events` must be in COMPOSE_PROFILES (.env), then make up"
            ) from error

    def task(self, task: AsyncResult) -> Seen[dict[str, Any]]:
        """Its data about a task, once it has received the task's end."""

        def known() -> list[Seen[dict[str, Any]]]:
            try:
                found = self.get(f"/api/task/info/{task.id}")
            except HTTPError:  # 404: no event received yet
                return []
            return [found] if found.value["state"] in states.READY_STATES else []

        (found,) = until(known, "Flower to know the task")
        return found
