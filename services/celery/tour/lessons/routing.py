"""Routing and priorities."""

from tasks import basic, search
from tour.evidence import Evidence, Seen, at_least, both
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
    "Many tasks in `low`, then a query in `high`: its own workers answer it meanwhile",
    shows=(basic.sleep,),
    covers=("many tasks in `low`, then one in `high`", "queue `high` against `low`"),
    expect={"answered": True, "low tasks that had not ended then": at_least(1)},
    learn="A queue with its own workers is stronger than any priority: tasks in other queues do not delay it.",
)
def flood(tour: Tour) -> Evidence:
    low = [basic.sleep.apply_async((0.3,), queue="low", priority=9) for _ in range(30)]
    query = search.search.delay("import")
    answer = tour.events.wait("succeeded", of=[query])
    done = tour.events.wait("succeeded", of=low, count=len(low))
    return {
        "answered": tour.backend.state(query).map(lambda state: state == "SUCCESS"),
        "low tasks that had not ended then": both(answer, done).map(
            lambda pair: sum(tour.elapsed(pair[0][0], event) > 0 for event in pair[1])
        ),
    }


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


def _started_before(tour: Tour, prefetch: int) -> Seen[int]:
    worker = tour.worker("--concurrency=1", f"--prefetch-multiplier={prefetch}")
    low = [basic.sleep.apply_async((0.2,), queue=worker.queue, priority=9) for _ in range(16)]
    tour.events.wait("received", of=low, count=prefetch)
    urgent = basic.sleep.apply_async((0,), queue=worker.queue, priority=0)
    started = tour.events.wait("started", of=[*low, urgent], count=17)
    return started.map(lambda events: [event.task for event in events].index(urgent.id))


@priorities.step(
    "Prefetched messages run before a more urgent one",
    shows=(_started_before,),
    covers=("what prefetch does to it",),
    expect={"ran before it, prefetch 8": at_least(7), "fewer with prefetch 1": True},
    learn="Priorities sort the messages in Redis, but not the prefetched ones: so the prefetch multiplier is 1 here.",
)
def prefetch(tour: Tour) -> Evidence:
    many, few = _started_before(tour, 8), _started_before(tour, 1)
    return {
        "ran before it, prefetch 8": many,
        "fewer with prefetch 1": both(few, many).map(lambda numbers: numbers[0] < numbers[1]),
    }
