"""Latency of urgent tasks while 20,000 others of 10 ms wait, compared to the same workers without them."""

from bench.contenders import Contender
from bench.measurements.latency import latencies
from bench.plans import Plan
from bench.report import Column
from bench.system import BenchError, Server, finished, publisher, workers

TITLE = "Urgent tasks while 20,000 others of 10 ms wait"
COLUMNS = (
    Column("idle", "p99 without them, ms", digits=1, compared=False),
    Column("p50", "p50 ms", digits=1, compared=False),
    Column("p99", "p99 ms", digits=1, range=True),
    Column("ratio", "p99 ÷ p99 without", digits=2, compared=False),
)

OTHERS, SECONDS = 20_000, 0.01
EVERY = 0.05  # s between two urgent tasks, on average
URGENT = 200


def sample(server: Server, contender: Contender, plan: Plan, warm_up: bool) -> dict[str, float]:
    """First without the others, then with them."""
    others, urgent = (OTHERS // 10, URGENT // 10) if warm_up else (OTHERS, URGENT)
    server.empty()
    server.go()
    with workers(contender) as processes:
        processes.settle()
        idle = latencies(server, contender, "timed", urgent, EVERY)
        for each in [publisher(contender, "pauses", others // 2, SECONDS) for _ in range(2)]:
            finished(each)
        busy = latencies(server, contender, "timed", urgent, EVERY)
        if not server.waiting():
            raise BenchError("the other tasks were done before the urgent ones")
    return {"idle": idle["p99"], **busy, "ratio": busy["p99"] / idle["p99"]}
