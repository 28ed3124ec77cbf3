"""The classic Celery commands work as they are, in a client container."""

import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from python_on_whales import DockerClient

from stack.poll import poll_until
from stack.stack import PROJECT, ROOT, Stack


def celery(stack: Stack, *arguments: str) -> str:
    """Output of `docker compose run --rm client celery -A celery_app …`."""
    output = stack.compose.run("client", ["celery", "-A", "celery_app", *arguments], remove=True, tty=False)
    return str(output)


@contextmanager
def running(stack: Stack, *arguments: str) -> Iterator[list[str]]:
    """A command that runs until it is interrupted, as with Ctrl-C; yields its output so far, line by line."""
    name = f"{PROJECT}-command"
    command = [
        *stack.compose_command,
        "run",
        "--rm",
        "--no-TTY",
        "--name",
        name,
        "client",
        "celery",
        "-A",
        "celery_app",
    ]
    process = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines: list[str] = []
    assert process.stdout is not None
    reader = threading.Thread(target=lines.extend, args=[process.stdout], daemon=True)
    reader.start()
    try:
        yield lines
    finally:
        DockerClient().container.stop(name, time=20)
        process.wait(20)
        reader.join(20)
        print("".join(lines))  # pytest shows it when the test fails


def wait_for_line(lines: list[str], pattern: str) -> None:
    """Wait for output that matches."""
    poll_until(lambda: re.search(pattern, "".join(lines)), f"output that matches {pattern!r}", 40)


def test_ctrl_c_ends_a_command_and_its_container(stack: Stack) -> None:
    """Without a terminal: compose alone would leave the container running."""
    others = {container.id for container in stack.containers(one_off=True)}
    run = [str(ROOT / "scripts/run.sh"), "client", "sleep", "300"]
    process = subprocess.Popen(run, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        poll_until(
            lambda: [each for each in stack.containers(one_off=True) if each.id not in others and each.state.running],
            "the container of the command",
            60,
        )
    finally:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert process.wait(60) == 130
    assert {container.id for container in stack.containers(one_off=True)} <= others


def test_status_lists_the_workers(stack: Stack) -> None:
    output = celery(stack, "status")
    assert re.search(r"high@\w+: OK", output)
    assert re.search(r"low@\w+: OK", output)
    assert "2 nodes online" in output


@pytest.mark.parametrize("what", ["active", "reserved"])
def test_inspect_asks_every_worker(what: str, stack: Stack) -> None:
    output = celery(stack, "inspect", what)
    assert re.search(r"high@\w+: OK", output)
    assert re.search(r"low@\w+: OK", output)


def test_a_worker_starts(stack: Stack) -> None:
    with running(stack, "worker", "--loglevel=INFO", "--hostname=extra@%h") as lines:
        wait_for_line(lines, r"extra@\w+ ready")


def test_a_gevent_worker_uses_the_stock_transport_and_says_why(stack: Stack) -> None:
    with running(stack, "worker", "--pool=gevent", "--loglevel=INFO", "--hostname=extra@%h") as lines:
        wait_for_line(lines, r"extra@\w+ ready")
        wait_for_line(lines, r"transport: stock is used, not atomic: the pool is celery\.concurrency\.gevent")


def test_a_worker_with_beat_inside_starts_both(stack: Stack) -> None:
    with running(stack, "worker", "--beat", "--loglevel=INFO", "--hostname=extra@%h") as lines:
        wait_for_line(lines, r"extra@\w+ ready")
        wait_for_line(lines, r"beat: Starting")


def test_a_second_beat_starts(stack: Stack) -> None:
    with running(stack, "beat", "--loglevel=INFO") as lines:
        wait_for_line(lines, r"beat: Starting")


def test_flower_starts(stack: Stack) -> None:
    with running(stack, "flower") as lines:
        wait_for_line(lines, r"Visit me at|Connected to")
