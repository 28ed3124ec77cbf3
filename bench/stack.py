"""`python -m bench.stack FILE`, on the host: measures the stack's own containers, and writes samples as JSON.

Before a sample only what it measures is running.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from bench.contenders import CeleryApp
from bench.measurements.scale import SECONDS, SLOTS

ROUNDS, SIZES = 3, (1, 2, 4, 8)
STOCK, STACK = "stock as documented", "the stack"
NOOPS = 4000
SCALED = 200  # tasks of 50 ms for each slot
REDIS = "redis://bench-redis:6379/0"
# As in "First Steps with Celery": a broker and a result backend.
FIRST_STEPS = CeleryApp(settings={"result_backend": REDIS})
ENVIRONMENT = {
    **os.environ,
    "TRAFFIC": "idle",
    "WORKER_LOW_REPLICAS": "1",
    "BENCH_APP": json.dumps(asdict(FIRST_STEPS)),
    **{f"{name}_PORT": "0" for name in ("GRAFANA", "PROMETHEUS", "ALERTMANAGER", "FLOWER")},
}


def compose(*arguments: str) -> str:
    """What it printed. Raises CalledProcessError after its message."""
    command = ["docker", "compose", "--file", "compose.yaml", "--file", "bench/stack.yaml", "--progress", "quiet"]
    done = subprocess.run([*command, *arguments], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def client(module: str, *arguments: object) -> str:
    """What a module has printed in a container of the stack."""
    run = ["run", "--rm", "--no-deps", "--no-TTY", "--env", f"BENCH_APP={ENVIRONMENT['BENCH_APP']}", "client"]
    return compose(*run, "python", "-m", module, *map(str, arguments))


def follow(app: str, task: str, tasks: int, processes: int) -> float:
    """See bench/follow.py."""
    return float(client("bench.follow", app, task, tasks, processes))


def whole(warm_up: bool) -> dict[str, float]:
    """The stack, all services."""
    compose("up", "--detach", "--wait")
    return {"rate": follow("stack_app", "noop", NOOPS // 10 if warm_up else NOOPS, SLOTS)}


def stock(warm_up: bool) -> dict[str, float]:
    """Stock Celery with a Redis, nothing else."""
    compose("up", "--detach", "--scale", "stock=1", "bench-redis", "stock")
    return {"rate": follow("celery_app", "noop", NOOPS // 10 if warm_up else NOOPS, os.cpu_count() or 1)}


def scrapes() -> dict[str, dict[str, float]]:
    """Of the stack's exporters, also of one whose profile is off: see bench/scrape.py."""
    compose("--profile", "events", "up", "--detach", "--wait")
    compose("stop", "prometheus")  # which scrapes them, too
    found: dict[str, dict[str, float]] = json.loads(client("bench.scrape"))
    return found


def scaled(containers: int) -> dict[str, float]:
    """Workers, the two Redis, nothing else."""
    compose("stop", "worker-low")  # a process counts from its start
    services = ("bench-redis", "redis", "redis-results", "worker-low")
    compose("up", "--detach", "--wait", "--scale", f"worker-low={containers}", *services)
    slots = containers * SLOTS
    rate = follow("stack_app", "pause", SCALED * slots, slots)
    return {"rate": rate, "part": rate * SECONDS / slots}


def main(file: Path) -> None:
    load = f"{os.getloadavg()[0]:.1f}"
    samples: dict[str, dict[str, list[dict[str, float]]]] = {"stack": {}, "scale": {}, "scrape": {}}
    for turn in range(ROUNDS + 1):
        for name, sample in ((STOCK, stock), (STACK, whole)):
            values = sample(warm_up=turn == 0)
            compose("stop")
            if turn:
                samples["stack"].setdefault(name, []).append(values)
            print(f"bench: stack, round {turn}: {name}: {values['rate']:.0f} tasks/s", flush=True)
    for turn in range(ROUNDS + 1):
        for name, values in scrapes().items():
            if turn:
                samples["scrape"].setdefault(name, []).append(values)
        print(f"bench: scrape, round {turn}", flush=True)
    compose("stop")
    for _ in range(ROUNDS):
        for containers in SIZES:
            values = scaled(containers)
            samples["scale"].setdefault(f"{containers} containers", []).append(values)
            print(f"bench: scale: {containers} containers: {values['rate']:.0f} tasks/s", flush=True)
        compose("stop")
    file.write_text(json.dumps({"load before": load, "samples": samples}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
