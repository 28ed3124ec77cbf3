"""Monitoring."""

import os
import signal

from celery_app import app
from tasks import basic, workflows
from tour import links
from tour.evidence import Evidence, containing, matching
from tour.lesson import Concept
from tour.tasks import practices, processes
from tour.tour import Tour

CONCEPT = Concept(
    "Monitoring",
    "monitoring",
    "Three ways to observe the workers, each with its own limits: remote control, events and metrics.",
)

inspecting = CONCEPT.lesson("inspect", "Remote control: what a worker is doing")


@inspecting.step(
    "active, reserved, scheduled, registered, stats, revoked; status",
    shows=(basic.sleep,),
    covers=(
        "status",
        "inspect active",
        "inspect reserved",
        "inspect scheduled",
        "inspect revoked",
        "inspect registered",
        "inspect stats",
    ),
    expect={
        "status": {"ok": "pong"},
        "active": ["tasks.basic.sleep"],
        "reserved": ["tasks.basic.add"],
        "scheduled": 0,
        "delayed in Redis": 1,
        "revoked": containing("an-id-that-is-revoked"),
        "registered": containing("tasks.basic.add"),
        "stats: pool": 1,
    },
    learn="A worker answers only for itself, and a blocked one not at all. `scheduled` is what it holds for later; "
    "here that waits in Redis.",
)
def ask(tour: Tour) -> Evidence:
    worker = tour.worker("--concurrency=1", "--prefetch-multiplier=3")
    running = basic.sleep.apply_async((8,), queue=worker.queue)
    tour.events.wait("started", of=[running])
    reserved = basic.add.apply_async((1, 1), queue=worker.queue)
    basic.add.apply_async((1, 1), queue=worker.queue, countdown=30)
    tour.events.wait("received", of=[reserved])
    app.control.revoke("an-id-that-is-revoked", destination=[worker.name])
    return {
        "status": tour.inspect("ping", worker.name),
        "active": tour.inspect("active", worker.name).map(lambda tasks: [task["name"] for task in tasks]),
        "reserved": tour.inspect("reserved", worker.name).map(lambda tasks: [task["name"] for task in tasks]),
        "scheduled": tour.inspect("scheduled", worker.name).map(len),
        "delayed in Redis": tour.broker.delayed(worker.queue, 1),
        "revoked": tour.inspect("revoked", worker.name),
        "registered": tour.inspect("registered", worker.name),
        "stats: pool": tour.inspect("stats", worker.name).map(lambda stats: stats["pool"]["max-concurrency"]),
    }


controlling = CONCEPT.lesson("control", "Remote control: commands for workers")


@controlling.step(
    "Another queue, a larger pool, a rate limit, shutdown",
    covers=("control add_consumer", "control pool_grow", "control rate_limit", "control shutdown"),
    expect={
        "queues before": 1,
        "queues after add_consumer": 2,
        "processes after pool_grow(2)": 3,
        "rate_limit answers": matching("new rate limit set", "new rate limit set"),
        "exit code after shutdown": 0,
    },
    learn="Commands go to all workers unless `destination` is given; their effect ends with the worker.",
)
def tell(tour: Tour) -> Evidence:
    worker, other = tour.worker("--concurrency=1"), tour.queue()
    to = {"destination": [worker.name], "reply": True, "timeout": 30}
    before = tour.inspect("active_queues", worker.name).map(len)
    app.control.add_consumer(other, exchange=other, routing_key=other, **to)
    queues = tour.inspect("active_queues", worker.name, least=2).map(len)
    app.control.pool_grow(2, **to)
    grown = tour.pool_size(worker.name, 3)
    limited = tour.replied(app.control.rate_limit("tasks.basic.add", "10/m", **to))
    app.control.shutdown(destination=[worker.name])
    return {
        "queues before": before,
        "queues after add_consumer": queues,
        "processes after pool_grow(2)": grown,
        "rate_limit answers": limited.map(lambda replies: replies[worker.name]["ok"]),
        "exit code after shutdown": worker.exit_code(),
    }


listening = CONCEPT.lesson("events", "The stream of events, and Flower")


@listening.step(
    "Each change of a task's state is an event with a time and a worker",
    covers=("events",),
    expect={
        "events": ["sent", "received", "started", "succeeded"],
        "fields of the last": containing("result", "runtime", "timestamp", "hostname", "pid"),
    },
    learn="Events are not stored: a process that is not connected misses them. Each event has a cost for the worker.",
)
def stream(tour: Tour) -> Evidence:
    promise = basic.add.delay(2, 2)
    events = tour.events.wait("sent", "received", "started", "succeeded", of=[promise], count=4)
    return {
        "events": events.map(lambda found: [event.type for event in found]),
        "fields of the last": events.map(lambda found: sorted(found[-1].fields)),
    }


@listening.step(
    "Flower's API returns the same task",
    covers=("Flower by its API",),
    expect={
        "state": "SUCCESS",
        "name": "tasks.basic.add",
        "result": "4",
        "without a login": matching("401", "the error 401, unauthorized"),
    },
    learn="Flower keeps events in memory and shows them on pages and in an API; it enables events on all workers.",
)
def flower(tour: Tour) -> Evidence:
    promise = basic.add.delay(2, 2)
    tour.backend.reaches(promise, "SUCCESS")
    task = tour.flower.task(promise)
    return {
        "state": task.map(lambda t: t["state"]),
        "name": task.map(lambda t: t["name"]),
        "result": task.map(lambda t: t["result"]),
        "without a login": tour.raised(lambda: tour.flower.get("/api/tasks", login=False)),
    }


counting = CONCEPT.lesson("metrics", "Metrics for Prometheus and Grafana")


@counting.step(
    "The workers count each task by name, queue and outcome",
    shows=(workflows.times,),
    covers=("metrics",),
    expect={"increase of the counter": 5.0},
    learn="Counters include what happened between two scrapes; events and inspect show only the present.",
)
def metrics(tour: Tour) -> Evidence:
    before = tour.counted("tasks.workflows.times")
    promises = [workflows.times.delay(2, 3) for _ in range(5)]
    tour.events.wait("succeeded", of=promises, count=5)
    return {"increase of the counter": tour.counted("tasks.workflows.times").map(lambda after: after - before.value)}


@counting.step(
    "A link to Grafana for one task",
    shows=(links.explore,),
    covers=("a link to Grafana for one task",),
    expect={
        "open": matching(r"^http://.+/explore\?.+tasks\.workflows\.times", "an address that contains the task's name")
    },
    learn="Such a link leads from a task's name to its rate, failures and run time; use it in tools and alerts.",
)
def grafana(tour: Tour) -> Evidence:
    return {"open": links.explore("tasks.workflows.times")}


commands = CONCEPT.lesson("own-commands", "Commands of your own for workers")


@commands.step(
    "A command that answers, and one that is broadcast to several workers",
    shows=(processes.running_for, processes.switch),
    covers=("a control command of one's own", "broadcast"),
    expect={
        "running_for names the running task": True,
        "workers that answered the broadcast": 2,
        "answers": ["debug is on"],
    },
    learn="A command reaches each worker that is connected now, and is not stored: use it for a worker's state; work "
    "belongs in a queue.",
)
def own_commands(tour: Tour) -> Evidence:
    first = tour.worker("--concurrency=1", "--include=tour.tasks.processes")
    second = tour.worker("--concurrency=1", "--include=tour.tasks.processes", again=True)
    running = basic.sleep.apply_async((8,), queue=first.queue)
    tour.events.wait("started", of=[running])
    tour.inspect("ping", second.name)
    durations = app.control.broadcast("running_for", destination=[first.name], reply=True, timeout=30, limit=1)
    both_of_them, wanted = [first.name, second.name], {"name": "debug", "on": True}
    switched = app.control.broadcast("switch", wanted, destination=both_of_them, reply=True, timeout=30, limit=2)
    answers = tour.replied(switched)
    return {
        "running_for names the running task": tour.replied(durations).map(
            lambda replies: list(replies[first.name]) == [running.id]
        ),
        "workers that answered the broadcast": answers.map(len),
        "answers": answers.map(lambda replies: sorted({reply["ok"] for reply in replies.values()})),
    }


stuck = CONCEPT.lesson("stuck-task", "A task that hangs: which one, and where")


@stuck.step(
    "inspect names the task and its process, a signal prints the line where it waits",
    shows=(practices.listen, processes.dump_stacks_at_a_signal),
    covers=("a stuck worker",),
    expect={
        "running": "tour.tasks.practices.listen",
        "the stack names": matching("practices.py.* in listen", "the file, the line, and the function listen"),
        "after terminate": "REVOKED",
    },
    learn="`inspect active` shows the task and its process, `faulthandler` the line where it waits; `terminate` "
    "ends it.",
)
def hangs(tour: Tour) -> Evidence:
    worker = tour.worker("--concurrency=1", "--include=tour.tasks.processes")
    promise = practices.listen.apply_async((None,), queue=worker.queue)
    tour.events.wait("started", of=[promise])
    active = tour.inspect("active", worker.name)
    os.kill(active.value[0]["worker_pid"], signal.SIGUSR2)
    line = worker.log("in listen").map(lambda lines: lines[0].strip())
    promise.revoke(terminate=True)
    return {
        "running": active.map(lambda tasks: tasks[0]["name"]),
        "the stack names": line,
        "after terminate": tour.backend.reaches(promise, "REVOKED"),
    }
