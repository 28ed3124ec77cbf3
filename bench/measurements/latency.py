"""From the call that publishes a task until it runs, on workers that are idle."""

from statistics import quantiles

from bench.contenders import Contender
from bench.plans import Plan
from bench.report import Column
from bench.system import Server, finished, publisher, wait, workers

TITLE = "Latency of an idle worker"
COLUMNS = (Column("p50", "p50 ms", digits=1, range=True), Column("p99", "p99 ms", digits=1, range=True))

EVERY = 0.025  # s between two tasks, on average
DROPPED = 20  # the first ones


def sample(server: Server, contender: Contender, plan: Plan, warm_up: bool) -> dict[str, float]:
    """One task at a time."""
    count = DROPPED if warm_up else plan.latencies
    server.empty()
    server.go()
    with workers(contender) as processes:
        processes.settle()
        return latencies(server, contender, "timed", count, EVERY)


def latencies(server: Server, contender: Contender, what: str, count: int, seconds: float) -> dict[str, float]:
    """Publish tasks as bench/publish.py says, and wait until they have run. The first ones do not count: some workers
    take their first late."""
    _waits(server, contender, what, DROPPED, seconds)
    percentiles = quantiles(_waits(server, contender, what, count, seconds), n=100, method="inclusive")
    return {"p50": percentiles[49] * 1e3, "p99": percentiles[98] * 1e3}


def _waits(server: Server, contender: Contender, what: str, count: int, seconds: float) -> list[float]:
    finished(publisher(contender, what, count, seconds))
    found: list[float] = []

    def complete() -> bool:
        found.extend(server.waits())
        return len(found) >= count

    wait(complete, f"{count} tasks to run")
    return found
