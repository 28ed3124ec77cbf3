"""Complete tours of the stack."""

import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stack.stack import Stack

TOUR_TAKES = 300  # s, promised in README.md; a machine that is busy with other things may take twice as long


def command(stack: Stack, *arguments: str, tty: bool = False, app: Path | None = None, **environment: str) -> list[str]:
    """The command of `make tour`; `app` replaces the image's code."""
    options = [f"--env={name}={value}" for name, value in environment.items()]
    options += [] if tty else ["--no-TTY"]
    options += [f"--volume={app}:/app:ro"] if app else []
    return [*stack.compose_command, "run", "--rm", "--no-deps", *options, "client", "python", "-m", "tour", *arguments]


def tour(stack: Stack, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a tour until it ends."""
    return subprocess.run(
        command(stack, *arguments, **options), capture_output=True, text=True, timeout=2 * TOUR_TAKES, check=False
    )


@dataclass(frozen=True)
class Taken:
    """A tour that ran under the producer's load."""

    steps: list[dict[str, Any]]
    text: str
    exit_code: int
    seconds: float
    published: float  # by the producer during the tour
    workers: tuple[dict[str, int], dict[str, int]]  # first processes of the workers' containers, before and after


def take(stack: Stack) -> Taken:
    """Run the whole tour."""

    def workers() -> dict[str, int]:
        found = [*stack.containers("worker-high"), *stack.containers("worker-low"), *stack.containers("beat")]
        return {container.name: container.state.pid or 0 for container in found}

    def published() -> float:
        return stack.prometheus.value('sum(celery_published_total{job="producer"})')

    stack.prometheus.wait_scraped("producer")
    before, sent, begun = workers(), published(), time.monotonic()
    done = tour(stack, "--json", GRAFANA_ADDRESS="127.0.0.1:1")
    seconds = time.monotonic() - begun
    steps = json.loads(done.stdout) if done.stdout else []
    return Taken(steps, done.stderr, done.returncode, seconds, published() - sent, (before, workers()))
