"""What a worker's processes share, and commands for them. Not imported by the app: `celery worker
--include=tour.tasks.processes`."""

import faulthandler
import json
import os
import signal
import socket
import time
from typing import Annotated, Any
from urllib.parse import urlsplit

from celery import signals
from celery.worker.control import control_command, inspect_command
from celery.worker.state import active_requests
from pydantic import Field

from celery_app import Task, app
from settings import settings
from tasks.arguments import Name, checked
from tasks.notes import note

connections: dict[str, socket.socket] = {}
ballast: list[bytes] = []


def _connect() -> socket.socket:
    address = urlsplit(settings.redis_results_url)
    return socket.create_connection((address.hostname, address.port), timeout=5)


@signals.worker_init.connect
def open_before_the_fork(**_: Any) -> None:
    """In the worker's main process: every child inherits this connection."""
    connections["before"] = _connect()


@signals.worker_process_init.connect
def open_after_the_fork(**_: Any) -> None:
    """In each child, at its start: its own connection."""
    connections["after"] = _connect()


@app.task
@checked
def show_connections(name: Name) -> None:
    """Note this process and the local ports of its connections: the same port is the same connection."""
    ports = {when: connection.getsockname()[1] for when, connection in connections.items()}
    note(name, json.dumps({"pid": os.getpid(), **ports}))
    time.sleep(0.02)  # so that one process does not run all of them


@app.task(bind=True, ignore_result=False)
@checked
def hoard(self: Task, megabytes: Annotated[int, Field(ge=0, le=200)]) -> int:
    """Allocate memory and never free it, like a leak. Returns the PID."""
    ballast.append(b"x" * (megabytes << 20))
    return os.getpid()


@app.task(ignore_result=False)
@checked
def observed(name: Name) -> str:
    """A task whose signals are noted below."""
    return name


def noting(what: str) -> Any:
    """A receiver of Celery's signals that notes the signal's name."""

    def receiver(sender: Task, **_: Any) -> None:
        note(sender.request.args[0], what)

    return receiver


for _signal in (signals.task_prerun, signals.task_success, signals.task_postrun):
    _signal.connect(noting(_signal.name), sender=observed, weak=False)


# --- Commands of your own, and a stack dump ---

switches: dict[str, bool] = {}


@inspect_command()
def running_for(state: Any) -> dict[str, float]:
    """How long each task of this worker has been running (s), by its id."""
    return {request.id: round(time.time() - request.time_start, 1) for request in active_requests if request.time_start}


@control_command(args=[("name", str), ("on", bool)], signature="<name> <on>")
def switch(state: Any, name: str, on: bool) -> dict[str, Any]:
    """Switch something on or off in this worker, until it ends."""
    switches[name] = on
    return {"ok": f"{name} is {'on' if on else 'off'}"}


@signals.worker_process_init.connect
def dump_stacks_at_a_signal(**_: Any) -> None:
    """SIGUSR2 prints the stack of each thread to stderr. Not SIGUSR1: it is Celery's for the soft time limit."""
    faulthandler.register(signal.SIGUSR2, file=2, all_threads=True)
