"""How long after its time a delayed task runs, on workers that are idle."""

from bench.contenders import Contender
from bench.measurements.latency import DROPPED, latencies
from bench.plans import Plan
from bench.report import Column
from bench.system import Server, finished, publisher, workers

TITLE = "How late a delayed task runs"
COLUMNS = (
    Column("p50", "p50 ms", digits=1, range=True),
    Column("p99", "p99 ms", digits=1, range=True),
    Column("together", "all at once, p99 ms", digits=1, range=True),
)

AHEAD = 4.0  # s until a task is due, on average


def sample(server: Server, contender: Contender, plan: Plan, warm_up: bool) -> dict[str, float]:
    """Tasks with different countdowns; then as many that are due at the same time."""
    server.empty()
    if contender.delayed:
        finished(publisher(contender, "later"))
        server.copy_delayed(contender.delayed)
    server.go()
    with workers(contender) as processes:
        processes.settle()
        count = DROPPED if warm_up else plan.latencies
        apart = latencies(server, contender, "due", count, AHEAD)
        return {**apart, "together": latencies(server, contender, "together", count, AHEAD)["p99"]}
