"""Memory of the workers before and after a million no-op tasks."""

from bench.contenders import Contender
from bench.measurements.drain import MOST, Waiting, publish
from bench.plans import Plan
from bench.report import Column
from bench.system import BenchError, Server, wait, workers

TITLE = "Memory of the workers after many no-op tasks"
COLUMNS = (
    Column("first", "MiB after 30,000", digits=1, compared=False),
    Column("last", "MiB after 1,020,000", digits=1, compared=False),
    Column("growth", "last ÷ first", digits=2, compared=False),
)

REPEATS = 34

waiting: dict[str, Waiting] = {}


def sample(server: Server, contender: Contender, plan: Plan, warm_up: bool) -> dict[str, float]:
    """The same messages again and again; the warm-up only publishes them."""
    if warm_up:
        waiting[contender.name] = publish(server, contender, MOST)
        return {}
    server.empty()
    server.go()
    first = 0.0
    with workers(contender) as processes:
        for repeat in range(1, REPEATS + 1):
            server.restore(waiting[contender.name].snapshot)
            wait(lambda done=MOST * repeat: server.tasks() >= done, f"{MOST * repeat} tasks", timeout=600)  # type: ignore[misc]
            first = first or processes.memory()
        last = processes.memory()
    if server.tasks() != MOST * REPEATS:
        raise BenchError(f"{server.tasks()} tasks were run instead of {MOST * REPEATS}")
    return {"first": first, "last": last, "growth": last / first}
