"""What 16 workers use that have little to do: nothing, and then 100 tasks a second for all of them together."""

import time

from bench.contenders import Contender
from bench.measurements.latency import DROPPED, latencies
from bench.plans import Plan
from bench.report import Column
from bench.system import Server, workers

TITLE = "16 workers with little to do"
COLUMNS = (
    Column("rest", "no tasks: % of a core", digits=1),
    Column("cpu", "100 tasks/s: CPU µs/task", range=True),
    Column("p50", "p50 ms", digits=1),
)

REST = 10  # s
TASKS, EVERY = 500, 0.01


def sample(server: Server, contender: Contender, plan: Plan, warm_up: bool) -> dict[str, float]:
    """The CPU of all processes of all workers."""
    rest, tasks = (REST // 10, TASKS // 10) if warm_up else (REST, TASKS)
    server.empty()
    server.go()
    with workers(contender) as processes:
        processes.settle()
        before = processes.cpu()
        time.sleep(rest)
        between = processes.cpu()
        percentiles = latencies(server, contender, "timed", tasks, EVERY)
        cpu = (processes.cpu() - between) / (tasks + DROPPED)
    return {"rest": (between - before) / rest * 100, "cpu": cpu * 1e6, "p50": percentiles["p50"]}
