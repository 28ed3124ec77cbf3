"""How fast waiting no-op tasks are run, and what CPU they take."""

import time
from dataclasses import dataclass
from itertools import pairwise

from bench.contenders import Contender
from bench.plans import Plan
from bench.report import Column
from bench.system import BenchError, Processes, Server, Snapshot, finished, publisher, wait, workers

TITLE = "Drain: no-op tasks that wait in a queue"
COLUMNS = (
    Column("rate", "tasks/s", range=True),
    Column("cpu", "CPU µs/task"),
    Column("redis", "Redis µs/task", compared=False),
)

WARM_UP = 1000  # tasks
MOST = 30_000
PUBLISHERS = 2
END = 0.9  # the part of the tasks after which a process may have none left


@dataclass
class Waiting:
    """The messages of a contender's samples: published once, by its own publisher, and copied for each sample."""

    tasks: int
    snapshot: Snapshot


waiting: dict[str, Waiting] = {}


def publish(server: Server, contender: Contender, tasks: int) -> Waiting:
    """Have them published."""
    server.empty()
    bounds = [tasks * part // PUBLISHERS for part in range(PUBLISHERS + 1)]
    publishers = [publisher(contender, "fill", *each) for each in pairwise(bounds)]
    if contender.delayed:
        publishers.append(publisher(contender, "later"))
    for each in publishers:
        finished(each)
    return Waiting(tasks, server.snapshot())


def sample(server: Server, contender: Contender, plan: Plan, warm_up: bool) -> dict[str, float]:
    """Start the workers with the messages waiting, and follow them."""
    if warm_up:
        values = drain(server, contender, publish(server, contender, WARM_UP))
        tasks = min(int(values["rate"] * plan.seconds), MOST)
        waiting[contender.name] = publish(server, contender, max(tasks, WARM_UP // 2))
        return values
    return drain(server, contender, waiting[contender.name])


def drain(server: Server, contender: Contender, messages: Waiting) -> dict[str, float]:
    """All tasks must run, each once."""
    server.empty()
    server.restore(messages.snapshot)
    server.copy_delayed(contender.delayed)
    with workers(contender) as processes:

        def arrived() -> bool:
            processes.check()
            return server.arrived() == contender.processes

        try:
            wait(arrived, f"{contender.processes} processes to take their first task")
            return {**follow(server, processes, messages.tasks), "memory": processes.memory()}
        except BenchError as error:
            raise BenchError(f"{error}\n{processes.log()}") from None


def follow(server: Server, processes: Processes, tasks: int) -> dict[str, float]:
    """From the common start until a process may have no task left."""
    began, cpu, redis = time.monotonic(), processes.cpu(), server.cpu()
    server.go()
    value = rate(server, tasks, began)
    took, cpu, redis = time.monotonic() - began, processes.cpu() - cpu, server.cpu() - redis
    check(server, tasks)
    return {"rate": value, "cpu": cpu / took / value * 1e6, "redis": redis / took / value * 1e6, "tasks": tasks}


def rate(server: Server, tasks: int, began: float) -> float:
    """Tasks per second until most are done, by each process's own clock readings."""
    wait(lambda: server.tasks() >= tasks * END, f"{tasks} tasks to be done", timeout=600)
    return sum(count.tasks / (count.at - began) for count in server.counts())


def check(server: Server, tasks: int) -> None:
    """Raises BenchError unless each task has run, and none twice."""
    wait(lambda: server.tasks() >= tasks, f"{tasks} tasks to be done")
    time.sleep(0.2)  # for a second run of one, if there is any
    counts = server.counts()
    done, total = sum(count.tasks for count in counts), sum(count.total for count in counts)
    if (done, total) != (tasks, tasks * (tasks - 1) // 2):
        raise BenchError(f"{done} tasks were run instead of {tasks}, or others than were published")
