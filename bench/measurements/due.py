"""How long after its time a delayed task runs, on workers that are idle."""

from statistics import quantiles

from bench.contenders import Contender
from bench.measurements.latency import DROPPED, waits
from bench.plans import Plan
from bench.report import Column
from bench.system import Server, finished, publisher, workers

TITLE = "How late a delayed task runs"
COLUMNS = (Column("p50", "p50 ms", digits=1, range=True), Column("p99", "p99 ms", digits=1, range=True))

AHEAD = 4.0  # s until a task is due, on average
FEW = 20


def sample(server: Server, contender: Contender, plan: Plan, warm_up: bool) -> dict[str, float]:
    """Tasks with different countdowns, published one after the other."""
    server.empty()
    if contender.delayed:
        finished(publisher(contender, "later"))
        server.copy_delayed(contender.delayed)
    server.go()
    with workers(contender) as processes:
        processes.settle()
        waits(server, contender, "due", DROPPED, AHEAD)
        late = waits(server, contender, "due", FEW if warm_up else plan.latencies, AHEAD)
    percentiles = quantiles(late, n=100, method="inclusive")
    return {"p50": percentiles[49] * 1e3, "p99": percentiles[98] * 1e3}
