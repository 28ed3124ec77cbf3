"""Workers."""

import json
import signal
from typing import Any

from celery import Task
from celery.result import AsyncResult

from celery_app import app
from tasks import basic
from tour.events import Event
from tour.evidence import Evidence, Seen, at_least, at_most, between, both
from tour.lesson import Concept
from tour.processes import Worker
from tour.tasks import processes
from tour.tour import Tour

CONCEPT = Concept(
    "Workers",
    "workers",
    "A worker is a consumer with a pool: the kind and size of the pool, and what happens when the worker stops.",
)

pools = CONCEPT.lesson("pools", "prefork, threads, gevent, solo")


def _run(tour: Tour, pool: str, task: Task, argument: float, times: int, prefetch: int = 2) -> Seen[list[Event]]:
    """Run a task several times on a worker with this pool and four slots."""
    worker = tour.worker(f"--pool={pool}", "--concurrency=4", f"--prefetch-multiplier={prefetch}")
    promises = [task.apply_async((argument,), queue=worker.queue) for _ in range(times)]
    return tour.events.wait("started", "succeeded", of=promises, count=2 * times)


def _seconds(events: list[Event]) -> float:
    return events[-1].at - events[0].at


@pools.step(
    "Tasks that wait: four slots run up to four of them at once, in any pool",
    shows=(_run, basic.sleep),
    covers=("prefork", "threads", "gevent", "solo", "which work suits each"),
    expect={
        "solo: at the same time": 1,
        "prefork": between(2, 4),
        "threads": between(2, 4),
        "gevent": between(2, 4),
    },
    learn="For tasks that wait, threads or gevent give many slots for little memory; solo runs one task at a time.",
)
def waiting(tour: Tour) -> Evidence:
    return {
        "solo: at the same time": _run(tour, "solo", basic.sleep, 0.3, 8).map(tour.at_once),
        "prefork": _run(tour, "prefork", basic.sleep, 0.3, 8).map(tour.at_once),
        "threads": _run(tour, "threads", basic.sleep, 0.3, 8).map(tour.at_once),
        "gevent": _run(tour, "gevent", basic.sleep, 0.3, 8).map(tour.at_once),
    }


@pools.step(
    "Tasks that compute: threads and greenlets share one interpreter",
    shows=(basic.spin, basic.whoami),
    covers=("which work suits each",),
    expect={
        "threads, 4 times 0.2 s of CPU": at_least(0.75, "s"),
        "gevent, the same": at_least(0.75, "s"),
        "processes of threads": 1,
        "processes of prefork": at_least(2),
    },
    learn="Tasks that compute need processes: prefork, with as many slots as cores; other pools compute one at a time.",
)
def computing(tour: Tour) -> Evidence:
    def used(pool: str) -> Seen[int]:
        worker = tour.worker(f"--pool={pool}", "--concurrency=4", "--prefetch-multiplier=2")
        promises = [basic.whoami.apply_async(queue=worker.queue) for _ in range(20)]
        said = [tour.backend.result(promise) for promise in promises]
        return said[0].map(lambda _: len({each.value["pid"] for each in said}))

    return {
        "threads, 4 times 0.2 s of CPU": _run(tour, "threads", basic.spin, 200, 4).map(_seconds),
        "gevent, the same": _run(tour, "gevent", basic.spin, 200, 4).map(_seconds),
        "processes of threads": used("threads"),
        "processes of prefork": used("prefork"),
    }


@pools.step(
    "gevent on Redis needs a prefetch multiplier above 1",
    shows=(_run,),
    covers=("which work suits each", "prefetch"),
    expect={"8 waits of 0.2 s, prefetch 1": at_least(0.9, "s"), "prefetch 2 is faster": True},
    learn="A gevent worker has no event loop: without a free prefetch slot it checks for messages only every 1 to 2 s.",
)
def gevent(tour: Tour) -> Evidence:
    two = _run(tour, "gevent", basic.sleep, 0.2, 8).map(_seconds)
    one = _run(tour, "gevent", basic.sleep, 0.2, 8, prefetch=1).map(_seconds)
    return {
        "8 waits of 0.2 s, prefetch 1": one,
        "prefetch 2 is faster": both(two, one).map(lambda seconds: seconds[0] < seconds[1]),
    }


slots = CONCEPT.lesson("concurrency", "How many run at once, and how many are prefetched")


@slots.step(
    "Concurrency is the number of slots; prefetched messages wait for them in the worker",
    covers=("concurrency", "prefetch"),
    expect={"running": 2, "prefetched": 2, "left in the queue": 6},
    learn="A worker holds at most concurrency times prefetch multiplier messages; no other worker gets those.",
)
def prefetch(tour: Tour) -> Evidence:
    worker = tour.worker("--concurrency=2", "--prefetch-multiplier=2")
    promises = [basic.sleep.apply_async((5,), queue=worker.queue) for _ in range(10)]
    tour.events.wait("started", of=promises, count=2)
    tour.events.wait("received", of=promises, count=4)
    return {
        "running": tour.inspect("active", worker.name).map(len),
        "prefetched": tour.inspect("reserved", worker.name).map(len),
        "left in the queue": tour.broker.waiting(worker.queue),
    }


@slots.step(
    "Autoscale grows the pool while messages wait",
    covers=("autoscale",),
    expect={"processes before": 1, "processes under load": at_least(2)},
    learn="`--autoscale=4,1` starts with one process and adds up to three as needed; it does not add containers.",
)
def autoscale(tour: Tour) -> Evidence:
    worker = tour.worker("--autoscale=4,1")
    before = tour.pool_size(worker.name, 1)
    for _ in range(12):
        basic.sleep.apply_async((0.5,), queue=worker.queue)
    return {"processes before": before, "processes under load": tour.pool_size(worker.name, 2)}


recycling = CONCEPT.lesson("recycling", "Replacing processes that leak memory")


def _processes(tour: Tour, promises: list[AsyncResult]) -> Seen[int]:
    """The number of processes in which the tasks ran."""
    said = [tour.backend.result(promise) for promise in promises]
    return said[0].map(lambda _: len({each.value for each in said}))


@recycling.step(
    "After a number of tasks, or above a memory limit",
    shows=(processes.hoard,),
    covers=("max_tasks_per_child", "max_memory_per_child"),
    expect={
        "processes for 4 tasks, 2 tasks each": 2,
        "processes for 2 tasks that keep 60 MB, limit 110": 2,
        "the same, limit 400": 1,
    },
    learn="Recycling limits a memory leak until it is fixed: the process is replaced after a task, never during one.",
)
def recycle(tour: Tour) -> Evidence:
    def send(option: str, tasks: int, megabytes: int) -> list[AsyncResult]:
        worker = tour.worker("--concurrency=1", "--include=tour.tasks.processes", option)
        return [processes.hoard.apply_async((megabytes,), queue=worker.queue) for _ in range(tasks)]

    by_number, by_memory = send("--max-tasks-per-child=2", 4, 0), send("--max-memory-per-child=110000", 2, 60)
    never = send("--max-memory-per-child=400000", 2, 60)
    return {
        "processes for 4 tasks, 2 tasks each": _processes(tour, by_number),
        "processes for 2 tasks that keep 60 MB, limit 110": _processes(tour, by_memory),
        "the same, limit 400": _processes(tour, never),
    }


forking = CONCEPT.lesson("fork-safety", "Connections opened before the fork are shared")


@forking.step(
    "One connection in two processes, or one per process",
    shows=(processes.open_before_the_fork, processes.open_after_the_fork, processes.show_connections),
    covers=("clients opened before the fork",),
    expect={"processes": 2, "connections opened before the fork": 1, "connections opened after it": 2},
    learn="Two processes on one connection read each other's replies: open clients in `worker_process_init`, "
    "or at first use.",
)
def connections(tour: Tour) -> Evidence:
    worker, name = tour.worker("--concurrency=2", "--include=tour.tasks.processes"), tour.name("connections")
    for _ in range(20):
        processes.show_connections.apply_async((name,), queue=worker.queue)
    said = tour.noted(name, 20).map(lambda lines: [json.loads(line) for line in lines])
    return {
        "processes": said.map(lambda found: len({each["pid"] for each in found})),
        "connections opened before the fork": said.map(lambda found: len({each["before"] for each in found})),
        "connections opened after it": said.map(lambda found: len({each["after"] for each in found})),
    }


@forking.step(
    "Signals: your own code at events of a worker",
    shows=(processes.observed, processes.noting),
    covers=("signals",),
    expect={"noted by signals": ["task_prerun", "task_success", "task_postrun"]},
    learn="Use signals for what all tasks share (metrics, connections, log context), not for the logic of one task.",
)
def signals(tour: Tour) -> Evidence:
    worker, name = tour.worker("--concurrency=2", "--include=tour.tasks.processes"), tour.name("signals")
    processes.observed.apply_async((name,), queue=worker.queue)
    return {"noted by signals": tour.noted(name, 3)}


stopping = CONCEPT.lesson("stopping", "Warm, soft and cold shutdown, and kill")


def _busy(tour: Tour, seconds: float, **more: Any) -> tuple[Worker, AsyncResult]:
    """A worker with one slot that runs a task of this length and has prefetched another; and the running task."""
    worker = tour.worker("--concurrency=1", "--prefetch-multiplier=2", again=True, **more)
    running, ahead = [basic.sleep.apply_async((seconds,), queue=worker.queue) for _ in range(2)]
    tour.events.wait("started", of=[running])
    tour.events.wait("received", of=[ahead])
    return worker, running


@stopping.step(
    "Warm: running tasks finish, the other messages return to the queue",
    shows=(_busy,),
    covers=("warm stop",),
    expect={"exit code": 0, "running task": "SUCCESS", "back in the queue": 1},
    learn="A warm shutdown waits for running tasks without a limit: the container may be killed before they end.",
)
def warm(tour: Tour) -> Evidence:
    worker, running = _busy(tour, 3)
    app.control.shutdown(destination=[worker.name])
    return {
        "exit code": worker.exit_code(),
        "running task": tour.backend.reaches(running, "SUCCESS"),
        "back in the queue": tour.broker.waiting(worker.queue),
    }


@stopping.step(
    "Soft: running tasks get a few seconds, then their messages return, too",
    shows=(_busy,),
    covers=("soft stop",),
    expect={"exit code": at_most(1), "back in the queue": 2},
    learn="The stack's workers do this on `docker stop` (SIGTERM remapped to SIGQUIT): 6 s for running tasks, "
    "and no task is lost.",
)
def soft(tour: Tour) -> Evidence:
    softly = {"worker_soft_shutdown_timeout": 1}
    worker, _ = _busy(tour, 20, environment={"REMAP_SIGTERM": "SIGQUIT"}, settings=softly)
    worker.signal(signal.SIGTERM)
    return {
        "exit code": worker.exit_code(),
        "back in the queue": tour.broker.waiting(worker.queue),
    }


@stopping.step(
    "Cold: all messages return at once. Killed: when their leases end",
    shows=(_busy,),
    covers=("cold stop",),
    expect={"cold: back in the queue": 2, "killed: back in the queue": 0, "killed: unacknowledged in Redis": 2},
    learn="A second signal makes a shutdown cold; after SIGKILL other workers return the messages, 15 to 20 s later.",
)
def cold(tour: Tour) -> Evidence:
    stopped, _ = _busy(tour, 20, settings={"worker_soft_shutdown_timeout": 0})
    stopped.signal(signal.SIGQUIT)
    stopped.exit_code()
    killed, _ = _busy(tour, 20)
    killed.kill()
    return {
        "cold: back in the queue": tour.broker.waiting(stopped.queue),
        "killed: back in the queue": tour.broker.waiting(killed.queue),
        "killed: unacknowledged in Redis": tour.broker.unacknowledged(killed.queue, 2),
    }
