"""`python -m bench quick`: runs a plan of bench/plans.py, and writes /results: JSON, tables, plots."""

import json
import os
import platform
import sys
import time
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.contenders import CONTENDERS, Contender
from bench.goals import GOALS
from bench.plans import PLANS, Plan, Run
from bench.plots import plot
from bench.report import Measured, render
from bench.system import BenchError, Server

RESULTS, MEASURED = Path("/results"), Path("/measured/stack.json")
PACKAGES = (
    *("celery", "kombu", "redis", "hiredis", "celery-durable", "celery-redis-plus"),
    *("dramatiq", "taskiq", "taskiq-redis", "rq"),
)


def conditions(server: Server) -> dict[str, Any]:
    """Of the run, at its start."""
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    redis = server.client.info("server")["redis_version"]
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return {
        "command": os.environ["COMMAND"],
        "began": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{os.cpu_count()} cores, {cpu.partition(': ')[2] or platform.machine()}, {memory:.0f} GiB",
        "load before": f"{os.getloadavg()[0]:.1f}",
        "versions": f"Redis {redis}, Python {platform.python_version()}, {packages}",
    }


def measure(server: Server, plan: Plan, run: Run, results: dict[str, Any]) -> None:
    """The contenders take turns; one that fails is left out of the further rounds."""
    sample = import_module(f"bench.measurements.{run.measurement}").sample
    samples = results["samples"].setdefault(run.measurement, {each: [] for each in run.contenders})
    failures = results["failures"].setdefault(run.measurement, {})
    for turn in range(run.rounds + 1):
        began = time.monotonic()
        for contender in list(samples):
            try:
                values = sample(server, CONTENDERS[contender], plan, warm_up=turn == 0)
            except BenchError as error:
                failures[contender] = str(error)
                del samples[contender]
                print(f"{run.measurement}: {contender} failed: {error}", flush=True)
                continue
            if turn:
                samples[contender].append(values)
        name = f"round {turn} of {run.rounds}" if turn else "warm-up"
        print(f"bench: {run.measurement}, {name}: {time.monotonic() - began:.0f} s", flush=True)


def described(contender: Contender) -> dict[str, Any]:
    """For results.json."""
    return {"workers": contender.workers, "note": contender.note, "environment": contender.variables}


def main(name: str) -> None:
    plan, server = PLANS[name], Server()
    began, known = time.monotonic(), conditions(server)
    names = [contender for run in plan.runs for contender in run.contenders]
    results: dict[str, Any] = {
        "conditions": known,
        "contenders": {name: described(CONTENDERS[name]) for name in names},
        "samples": {},
        "failures": {},
    }
    for run in plan.runs:
        measure(server, plan, run, results)
    server.empty()
    if MEASURED.exists():
        measured = json.loads(MEASURED.read_text())
        known["load before"] = measured["load before"]  # not what the stack itself has caused
        for key, samples in measured["samples"].items():
            results["samples"][key], results["failures"][key] = samples, {}
    known["load after"] = f"{os.getloadavg()[0]:.1f}"
    known["took"] = f"{time.monotonic() - began:.0f} s"
    (RESULTS / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    for key in results["samples"]:
        plot(Measured.of(results, key), known, RESULTS / f"{key}.png")
    print(f"\n{render(results, GOALS)}\n")
    if any(results["failures"].values()):
        raise SystemExit("bench: some contenders failed; the reasons are above")


if __name__ == "__main__":
    main(sys.argv[1])
