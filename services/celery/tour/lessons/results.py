"""Results."""

from celery.result import AsyncResult

from settings import RESULT_TTL
from tasks import basic, workflows
from tour.evidence import Evidence, at_least, between, containing, error, matching, worker_of
from tour.lesson import Concept
from tour.tour import Tour

CONCEPT = Concept(
    "Results",
    "results",
    "Results are stored in a Redis of their own for a limited time. Each has a cost.",
)

getting = CONCEPT.lesson("getting-results", "Reading a result")


@getting.step(
    "get waits; after a time-out it raises, and the task continues",
    covers=("get with time-out",),
    expect={"error at once": error("TimeoutError"), "state a little later": "SUCCESS"},
    learn="Never call `get` without a time-out: with a lost task the caller would wait for ever. It is checked once "
    "a second.",
)
def time_out(tour: Tour) -> Evidence:
    promise = basic.sleep.delay(2.5)
    error = tour.raised(lambda: promise.get(timeout=1))
    return {"error at once": error, "state a little later": tour.backend.reaches(promise, "SUCCESS")}


@getting.step(
    "A failure is raised in the caller, unless propagate=False",
    covers=("propagate",),
    expect={
        "raised": error("RuntimeError", "this task always fails"),
        "returned": matching("this task always fails", "the same text"),
    },
    learn="`get()` raises the task's error; `get(propagate=False)` returns it, for callers that read many results.",
)
def propagate(tour: Tour) -> Evidence:
    promise = basic.failing.delay("for its caller")
    return {
        "raised": tour.raised(lambda: promise.get(timeout=30)),
        "returned": tour.returned(lambda: str(promise.get(timeout=30, propagate=False))),
    }


@getting.step(
    "A group's results, all at once or as they come",
    covers=("iterating a group",),
    expect={"joined": [1, 4, 9], "as they came": containing(1, 4, 9), "all successful": True},
    learn="A group's result is iterable; `iter_native` yields each result as soon as it is stored.",
)
def iterate(tour: Tour) -> Evidence:
    results = workflows.squares([1, 2, 3]).delay()
    return {
        "joined": tour.returned(lambda: results.join(timeout=30)),
        "as they came": tour.returned(lambda: [meta["result"] for _, meta in results.iter_native(timeout=30)]),
        "all successful": tour.returned(results.successful),
    }


keeping = CONCEPT.lesson("keeping-results", "How long a result is kept, and what is stored with it")


@keeping.step(
    "It expires, or is deleted by forget",
    covers=("forget", "expiry"),
    expect={"TTL": between(RESULT_TTL - 60, RESULT_TTL, "s"), "stored after forget": False},
    learn="`result_expires` is a TTL in Redis (here 2 h); call `forget` when a result is no longer needed.",
)
def expiry(tour: Tour) -> Evidence:
    promise = basic.add.delay(1, 1)
    tour.backend.reaches(promise, "SUCCESS")
    ttl = tour.redis("TTL", f"celery-task-meta-{promise.id}")
    promise.forget()
    return {"TTL": ttl, "stored after forget": tour.backend.stored(promise)}


@keeping.step(
    "Children and graph: the tasks that a task has sent",
    covers=("children and graph",),
    expect={"children of the first": 1, "graph has": 2, "last result": 16},
    learn="Each result lists the tasks that its task has sent; `collect` and `graph` read the tree node by node.",
)
def graph(tour: Tour) -> Evidence:
    promise = workflows.add_then_square(2, 2).delay()
    tour.backend.result(promise)
    first = promise.parent
    return {
        "children of the first": tour.returned(lambda: len(first.children)),
        "graph has": tour.returned(lambda: len(list(first.build_graph(intermediate=True)))),
        "last result": tour.backend.result(first.children[0]),
    }


@keeping.step(
    "result_extended stores name, arguments, worker and queue with it",
    covers=("result_extended",),
    expect={"name": "tasks.basic.add", "args": matching("1, 2", "1 and 2"), "worker": worker_of("low"), "queue": "low"},
    learn="With `result_extended` a result shows which call it belongs to; it needs some more bytes.",
)
def extended(tour: Tour) -> Evidence:
    promise = basic.add.delay(1, 2)
    return {
        "name": tour.backend.meta(promise, "name"),
        "args": tour.backend.meta(promise, "args").map(str),
        "worker": tour.backend.meta(promise, "worker"),
        "queue": tour.backend.meta(promise, "queue"),
    }


cost = CONCEPT.lesson("cost-of-results", "What results cost")

TASKS = 150


@cost.step(
    "The same tasks with and without results",
    covers=("ignore_result's saving", "when to have no result at all"),
    expect={"stored, with results": TASKS, "stored, without": 0, "bytes of one": at_least(100, "bytes")},
    learn="Each result is written, kept in memory and expired, and most are never read: ignore them by default, as "
    "here, and enable them per task.",
)
def measured(tour: Tour) -> Evidence:
    worker = tour.worker("--concurrency=1")

    def send(ignore: bool) -> list[AsyncResult]:
        return [basic.add.apply_async((1, 1), queue=worker.queue, ignore_result=ignore) for _ in range(TASKS)]

    kept, ignored = send(ignore=False), send(ignore=True)
    tour.events.wait("succeeded", of=[*kept, *ignored], count=2 * TASKS)
    return {
        "stored, with results": tour.backend.count_stored(kept),
        "stored, without": tour.backend.count_stored(ignored),
        "bytes of one": tour.redis("STRLEN", f"celery-task-meta-{kept[0].id}"),
    }
