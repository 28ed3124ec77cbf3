"""Routing and priorities."""

from typing import Any

from tasks import basic, search
from tour.evidence import Evidence, at_least, at_most
from tour.lesson import Concept
from tour.tour import Tour

CONCEPT = Concept(
    "Routing and priorities",
    "routing",
    "How long a message waits depends on the workers of its queue and on the other messages in it.",
)

routes = CONCEPT.lesson("routes", "Which queue a task goes to")


@routes.step(
    "By task name, by the call, else the default queue",
    covers=("routes", "queue `high` against `low`"),
    expect={"search": "high", "add": "low", "add, called with queue=high": "high"},
    learn="`task_routes` decides by name, `queue=` per call; all others go to `low`, the default here.",
)
def by_name(tour: Tour) -> Evidence:
    found = search.search.delay("import")
    low, high = basic.add.delay(1, 1), basic.add.apply_async((1, 1), queue="high")
    return {
        "search": tour.backend.meta(found, "queue"),
        "add": tour.backend.meta(low, "queue"),
        "add, called with queue=high": tour.backend.meta(high, "queue"),
    }


@routes.step(
    "Many tasks in `low`, then a query in `high`: its own workers answer at once",
    shows=(basic.sleep,),
    covers=("many tasks in `low`, then one in `high`", "queue `high` against `low`"),
    expect={"answered after": at_most(2, "s"), "low tasks still waiting then": at_least(15)},
    learn="A queue with its own workers is stronger than any priority: tasks in other queues do not delay it.",
)
def flood(tour: Tour) -> Evidence:
    low = [basic.sleep.apply_async((0.15,), queue="low", priority=9) for _ in range(30)]
    query = search.search.delay("import")
    events = tour.events.wait("sent", "succeeded", of=[query], count=2)
    answered = events.map(lambda pair: tour.elapsed(pair[0], pair[-1]))
    done = tour.events.wait("succeeded", of=low, count=0)
    tour.events.wait("succeeded", of=low, count=len(low))
    return {"answered after": answered, "low tasks still waiting then": done.map(lambda ended: len(low) - len(ended))}


priorities = CONCEPT.lesson("priorities", "Ten priorities inside a queue, 0 the most urgent")


@priorities.step(
    "Delivered by priority, not by age",
    shows=(basic.whoami,),
    covers=("priority 0..9 inside a queue", "the default priority must not be the most urgent"),
    expect={"in the queue, by priority": {0: 1, 2: 1, 5: 2, 7: 1, 9: 1}, "delivered in the order": [0, 2, 5, 5, 7, 9]},
    learn="On Redis 0 comes first, so `task_default_priority` is 5 here: otherwise tasks without a priority would run "
    "before all others.",
)
def order(tour: Tour) -> Evidence:
    queue = tour.queue()
    promises = [
        basic.whoami.apply_async(queue=queue, **({} if priority is None else {"priority": priority}))
        for priority in (9, 7, 5, None, 2, 0)
    ]
    waiting = tour.broker.by_priority(queue)
    tour.worker("--concurrency=1", queue=queue)
    started = tour.events.wait("started", of=promises, count=len(promises))
    priority = {promise.id: tour.backend.result(promise).value["priority"] for promise in promises}
    return {
        "in the queue, by priority": waiting,
        "delivered in the order": started.map(lambda events: [priority[event.task] for event in events]),
    }


def _started_before(tour: Tour, *options: str) -> Any:
    worker = tour.worker("--concurrency=1", *options)
    low = [basic.sleep.apply_async((0.1,), queue=worker.queue, priority=9) for _ in range(20)]
    tour.events.wait("started", of=low)
    urgent = basic.sleep.apply_async((0,), queue=worker.queue, priority=0)
    started = tour.events.wait("started", of=[*low, urgent], count=21)
    return started.map(lambda events: [event.task for event in events].index(urgent.id))


@priorities.step(
    "Prefetched messages run before a more urgent one",
    shows=(_started_before,),
    covers=("what prefetch does to it",),
    expect={"ran before it, prefetch 8": at_least(7), "ran before it, prefetch 1": at_most(4)},
    learn="Priorities sort the messages in Redis, but not the prefetched ones: so the prefetch multiplier is 1 here.",
)
def prefetch(tour: Tour) -> Evidence:
    return {
        "ran before it, prefetch 8": _started_before(tour, "--prefetch-multiplier=8"),
        "ran before it, prefetch 1": _started_before(tour, "--prefetch-multiplier=1"),
    }
