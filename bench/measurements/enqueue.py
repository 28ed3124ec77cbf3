"""How fast one publisher publishes no-op tasks: one by one, unless its contender publishes in batches."""

from bench.contenders import Contender
from bench.plans import Plan
from bench.report import Column
from bench.system import Server, finished, publisher

TITLE = "Publishing by one process"
COLUMNS = (Column("rate", "tasks/s", range=True), Column("redis", "Redis µs/task", compared=False))


def sample(server: Server, contender: Contender, plan: Plan, warm_up: bool) -> dict[str, float]:
    """Without workers."""
    count = plan.enqueued // 10 if warm_up else plan.enqueued
    server.empty()
    redis = server.cpu()
    seconds = float(finished(publisher(contender, "rate", count)))
    return {"rate": count / seconds, "redis": (server.cpu() - redis) / count * 1e6}
