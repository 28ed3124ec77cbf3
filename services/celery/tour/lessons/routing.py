"""Routing and priorities."""

from typing import Any

from tasks import basic, search
from tour.lesson import Concept, Evidence, at_least, at_most
from tour.tour import Tour

CONCEPT = Concept(
    "Routing and priorities",
    "routing",
    "A queue is a promise of service: how long messages wait is decided by who consumes it, and what else is in it.",
)

routes = CONCEPT.lesson("routes", "Which queue a task goes to")


@routes.step(
    "By its name, by its call, else to the default queue",
    covers=("routes", "queue `high` against `low`"),
    expect={"search": "high", "add": "low", "add, asked to be high": "high"},
    learn="`task_routes` decides by name, `queue=` by call; whatever is in neither goes to `low`, the default here.",
)
def by_name(tour: Tour) -> Evidence:
    found = search.search.delay("import")
    low, high = basic.add.delay(1, 1), basic.add.apply_async((1, 1), queue="high")
    return {
        "search": tour.backend.meta(found, "queue"),
        "add": tour.backend.meta(low, "queue"),
        "add, asked to be high": tour.backend.meta(high, "queue"),
    }


@routes.step(
    "A flood of low work, then a query: its own workers answer at once",
    shows=(basic.sleep,),
    covers=("a flood of low, then a high overtakes it", "queue `high` against `low`"),
    expect={"answered after": at_most(2, "s"), "low tasks still waiting then": at_least(15)},
    learn="A queue with workers of its own is the strongest priority: the flood cannot touch it.",
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
    "Served by priority, not by age",
    shows=(basic.whoami,),
    covers=("priority 0..9 inside a queue", "an unmarked task must not overtake all"),
    expect={"in the queue, by priority": {0: 1, 2: 1, 5: 2, 7: 1, 9: 1}, "served in the order": [0, 2, 5, 5, 7, 9]},
    learn="On Redis 0 comes first, so `task_default_priority` is 5 here: unmarked tasks would else overtake "
    "all others.",
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
        "served in the order": started.map(lambda events: [priority[event.task] for event in events]),
    }


def _overtaken(tour: Tour, *options: str) -> Any:
    worker = tour.worker("--concurrency=1", *options)
    low = [basic.sleep.apply_async((0.1,), queue=worker.queue, priority=9) for _ in range(20)]
    tour.events.wait("started", of=low)
    urgent = basic.sleep.apply_async((0,), queue=worker.queue, priority=0)
    started = tour.events.wait("started", of=[*low, urgent], count=21)
    return started.map(lambda events: [event.task for event in events].index(urgent.id))


@priorities.step(
    "What a worker has taken ahead is not overtaken any more",
    shows=(_overtaken,),
    covers=("what prefetch does to it",),
    expect={"ran before it, prefetch 8": at_least(7), "ran before it, prefetch 1": at_most(4)},
    learn="Priorities sort what waits in Redis; each prefetched message is out of their reach, so prefetch 1 here.",
)
def prefetch(tour: Tour) -> Evidence:
    return {
        "ran before it, prefetch 8": _overtaken(tour, "--prefetch-multiplier=8"),
        "ran before it, prefetch 1": _overtaken(tour, "--prefetch-multiplier=1"),
    }
