"""Time limits, revoke, expiry, rate limits, ETA."""

from uuid import uuid4

from celery_app import app
from tasks import advanced, basic, workflows
from tour.evidence import Evidence, at_least, containing, error
from tour.lesson import Concept
from tour.tour import Tour

CONCEPT = Concept(
    "Time limits and revoking",
    "limits",
    "How long a task may run, and how to revoke it before or during its run.",
)

limits = CONCEPT.lesson("time-limits", "A task that takes too long")


@limits.step(
    "The soft limit raises inside the task, which can clean up",
    shows=(advanced.stop_in_time,),
    covers=("soft limit handled and cleaned up",),
    expect={"result": "stopped in time", "noted": ["cleaned up"]},
    learn="Catch SoftTimeLimitExceeded, clean up and return the partial result; the hard limit leaves no time for it.",
)
def soft(tour: Tour) -> Evidence:
    name = tour.name("soft")
    promise = advanced.stop_in_time.delay(name, 10)
    return {"result": tour.backend.result(promise), "noted": tour.noted(name)}


@limits.step(
    "The hard limit kills the process",
    shows=(advanced.stop_never,),
    covers=("hard limit",),
    expect={"error": error("TimeLimitExceeded"), "noted": ["ignored"], "processes afterwards": at_least(1)},
    learn="The hard limit is for code that ignores the soft one; the worker starts a new process and continues.",
)
def hard(tour: Tour) -> Evidence:
    worker, name = tour.worker("--concurrency=1"), tour.name("hard")
    promise = advanced.stop_never.apply_async((name, 10), queue=worker.queue)
    return {
        "error": tour.backend.result(promise),
        "noted": tour.noted(name),
        "processes afterwards": tour.inspect("stats", worker.name).map(lambda stats: len(stats["pool"]["processes"])),
    }


revoking = CONCEPT.lesson("revoke", "Revoking a task")


@revoking.step(
    "Before it starts: it never runs",
    covers=("revoke before start",),
    expect={"state": "REVOKED", "dropped by a worker": 1, "runs": 0},
    learn="Every worker remembers the id, and drops the message when it receives it.",
)
def before(tour: Tour) -> Evidence:
    queue, name = tour.queue(), tour.name("revoked")
    promise = advanced.take_long.apply_async((name, 1), queue=queue)
    promise.revoke()
    tour.worker("--concurrency=1", queue=queue)
    dropped = tour.events.wait("revoked", of=[promise])
    return {
        "state": tour.backend.state(promise),
        "dropped by a worker": dropped.map(len),
        "runs": tour.noted(name).map(len),
    }


@revoking.step(
    "While it runs: terminate kills its process",
    covers=("terminate while running",),
    expect={"state": "REVOKED", "runs": 1, "path": ["sent", "received", "started", "revoked"]},
    learn="`terminate=True` kills the process without clean-up: use it for a task that hangs, not routinely.",
)
def terminate(tour: Tour) -> Evidence:
    worker, name = tour.worker("--concurrency=1"), tour.name("terminated")
    promise = advanced.take_long.apply_async((name, 20), queue=worker.queue)
    tour.noted(name, 1)
    tour.events.wait("started", of=[promise])
    promise.revoke(terminate=True)
    return {
        "state": tour.backend.reaches(promise, "REVOKED"),
        "runs": tour.noted(name).map(len),
        "path": tour.events.path(promise),
    }


@revoking.step(
    "By a stamp: all tasks of an order at once",
    shows=(workflows.OrderStamp,),
    covers=("revoke by stamp",),
    expect={"states": ["REVOKED", "REVOKED", "REVOKED"], "one without the stamp": "SUCCESS"},
    learn="A stamp marks tasks that belong together; revoking by it needs no list of their ids.",
)
def by_stamp(tour: Tour) -> Evidence:
    queue, order = tour.queue(), f"tour-{uuid4().hex[:6]}"
    stamped = basic.add.s(1, 1)
    stamped.stamp(workflows.OrderStamp(order))
    promises = [stamped.clone().apply_async(queue=queue) for _ in range(3)]
    other = basic.add.apply_async((1, 1), queue=queue)
    app.control.revoke_by_stamped_headers({"order": order})
    tour.worker("--concurrency=1", queue=queue)
    states = [tour.backend.states(promise).map(lambda seen: seen[-1]) for promise in promises]
    return {
        "states": states[0].map(lambda _: [state.value for state in states]),
        "one without the stamp": tour.backend.reaches(other, "SUCCESS"),
    }


@revoking.step(
    "Across a restart: with a state file, or stored in Redis",
    covers=("revokes over a restart (--statedb)",),
    expect={
        "Celery's own worker": "succeeded",
        "Celery's own with --statedb": "revoked",
        "a worker of this stack": "revoked",
    },
    learn="Celery's workers keep revoked ids in memory, or in a file with `--statedb`; here they are stored in Redis, "
    "also for workers that start later.",
)
def restarted(tour: Tour) -> Evidence:
    queue, state = tour.queue(), [f"--statedb={tour.folder / 'statedb'}"]
    plain = {"consumer": False}  # Celery's own consumer, without the stored revocations
    ids = {
        name: uuid4().hex for name in ("Celery's own worker", "Celery's own with --statedb", "a worker of this stack")
    }
    worker = tour.worker("--concurrency=1", *state, queue=queue, delivery=plain)
    tour.inspect("ping", worker.name)
    app.control.revoke(list(ids.values()))
    tour.until(lambda: set(ids.values()) <= {*tour.inspect("revoked", worker.name).value}, "the worker to know the ids")
    worker.stop()
    worker.exit_code()
    ends = {}
    for (name, task_id), options, delivery in zip(ids.items(), ([], state, []), (plain, plain, {}), strict=True):
        worker = tour.worker("--concurrency=1", *options, queue=queue, delivery=delivery, again=True)
        promise = basic.add.apply_async((1, 1), queue=queue, task_id=task_id)
        ends[name] = tour.events.wait("revoked", "succeeded", of=[promise]).map(lambda events: events[0].type)
        worker.stop()
        worker.exit_code()
    return ends


timing = CONCEPT.lesson("expires-rates", "Expiry and rate limits")


@timing.step(
    "A task that expires while it waits is dropped",
    covers=("expires",),
    expect={"state": "REVOKED", "event": containing("expired")},
    learn="Set `expires` for tasks that are useless later: then a backlog shrinks without running them.",
)
def expires(tour: Tour) -> Evidence:
    queue = tour.queue()
    promise = basic.add.apply_async((1, 1), queue=queue, expires=0.2)
    tour.worker("--concurrency=1", queue=queue)
    revoked = tour.events.wait("revoked", of=[promise])
    return {
        "state": tour.backend.reaches(promise, "REVOKED"),
        "event": revoked.map(lambda events: [what for what, yes in events[0].fields.items() if yes]),
    }


@timing.step(
    "A rate limit delays tasks, per worker",
    shows=(advanced.slow_lane,),
    covers=("rate limits",),
    expect={"five tasks at 2/s take": at_least(1.8, "s")},
    learn="The limit applies per worker and task name; messages beyond it wait in the worker, not in the queue.",
)
def rate(tour: Tour) -> Evidence:
    worker = tour.worker("--concurrency=1")
    for _ in range(5):
        advanced.slow_lane.apply_async(queue=worker.queue)
    started = tour.events.wait("started", name="tasks.advanced.slow_lane", count=5)
    return {"five tasks at 2/s take": started.map(lambda events: tour.elapsed(events[0], events[-1]))}


eta = CONCEPT.lesson("eta", "Countdown and ETA, and their limits on Redis")


@eta.step(
    "A task that is due later waits in Redis, not in its queue and not in a worker",
    covers=("ETA and countdown",),
    expect={"delayed in Redis": 1, "in the queue": 0, "held by the worker": 0, "started after": at_least(3, "s")},
    learn="A sorted set holds such messages by the time when they are due. A million take no memory of a worker.",
)
def countdown(tour: Tour) -> Evidence:
    worker = tour.worker("--concurrency=1")
    promise = basic.add.apply_async((1, 1), queue=worker.queue, countdown=4)
    delayed = tour.broker.delayed(worker.queue, 1)
    waiting, held = tour.broker.waiting(worker.queue), tour.broker.unacknowledged(worker.queue, 0)
    started = tour.events.wait("sent", "started", of=[promise], count=2)
    return {
        "delayed in Redis": delayed,
        "in the queue": waiting,
        "held by the worker": held,
        "started after": started.map(lambda events: tour.elapsed(events[0], events[-1])),
    }


@eta.step(
    "It may be due in days, and workers may be killed meanwhile",
    shows=(advanced.take_long,),
    covers=("their limits on Redis",),
    expect={"delayed": 2, "due after 3 s: runs": 1, "due in 3 days: state": "PENDING", "still delayed": 1},
    learn="With kombu's own transport a worker's memory holds it, and what is due in more than an hour (the visibility "
    "timeout) may run twice.",
)
def far(tour: Tour) -> Evidence:
    queue, name = tour.queue(), tour.name("soon")
    first = tour.worker("--concurrency=1", queue=queue)
    in_days = basic.add.apply_async((1, 1), queue=queue, countdown=3 * 86400)
    advanced.take_long.apply_async((name, 0), queue=queue, countdown=3)
    delayed = tour.broker.delayed(queue, 2)
    first.kill()
    tour.worker("--concurrency=1", queue=queue, again=True)
    return {
        "delayed": delayed,
        "due after 3 s: runs": tour.noted(name, 1).map(len),
        "due in 3 days: state": tour.backend.state(in_days),
        "still delayed": tour.broker.delayed(queue, 1),
    }
