"""Classic mistakes."""

from celery import chain

from celery_app import app
from tasks import basic
from tasks.notes import KEPT_FOR, key
from tour.evidence import Evidence, error, matching
from tour.lesson import Concept
from tour.tasks import orders, practices, testing
from tour.tour import Tour

CONCEPT = Concept(
    "Classic mistakes",
    "mistakes",
    "Common mistakes, each with its symptoms and what to do instead.",
)

waiting = CONCEPT.lesson("get-in-a-task", "Waiting for a task inside a task")


@waiting.step(
    "The only slot waits for a task that needs a slot",
    shows=(practices.wait_for_another, practices.wait_as_celery_likes),
    covers=("result.get() inside a task",),
    expect={
        "ends as": error("TimeoutError"),
        "the other ran": "only afterwards",
        "as Celery likes it": error("RuntimeError", "Never call result.get"),
        "as a chain": 4,
    },
    learn="A task that waits for another task blocks a slot; if all slots wait, no task runs. Use a chain.",
)
def deadlock(tour: Tour) -> Evidence:
    worker = tour.worker("--concurrency=1")
    promise = practices.wait_for_another.apply_async((2,), queue=worker.queue)
    events = tour.events.wait("failed", "started", count=3)
    return {
        "ends as": tour.backend.result(promise),
        "the other ran": events.map(
            lambda found: "only afterwards" if found[-1].name == "tasks.basic.add" else "meanwhile"
        ),
        "as Celery likes it": tour.backend.result(practices.wait_as_celery_likes.apply_async(queue=worker.queue)),
        "as a chain": tour.backend.result(chain(basic.add.s(1, 1), basic.add.s(2)).apply_async(queue=worker.queue)),
    }


early = CONCEPT.lesson("too-early", "Publishing before the data is written")


@early.step(
    "The worker is faster than the caller",
    shows=(practices.read,),
    covers=("publishing before the data is written",),
    expect={"published, then written": error("LookupError", "there is no"), "written, then published": "ready"},
    learn="Publish after the commit: a worker does not see an open transaction, or a write that comes later.",
)
def race(tour: Tour) -> Evidence:
    first, second = tour.name("first"), tour.name("second")
    hasty = practices.read.delay(first)
    failed = tour.backend.result(hasty)
    tour.redis("SET", key(first), "ready", "EX", KEPT_FOR)
    tour.redis("SET", key(second), "ready", "EX", KEPT_FOR)
    return {
        "published, then written": failed,
        "written, then published": tour.backend.result(practices.read.delay(second)),
    }


lost = CONCEPT.lesson("no-consumer", "A task that no worker consumes, and a queue that does not exist")


@lost.step(
    "Its queue has no worker: it stays PENDING, without an error",
    covers=("a task that no worker consumes",),
    expect={"state": "PENDING", "in the queue": 1, "after a worker started": "SUCCESS"},
    learn="Monitor queues, not only tasks: messages without consumers are an alert here (NoConsumers).",
)
def unconsumed(tour: Tour) -> Evidence:
    queue = tour.queue()
    promise = basic.add.apply_async((1, 1), queue=queue)
    state, length = tour.backend.state(promise), tour.broker.waiting(queue)
    tour.worker("--concurrency=1", queue=queue)
    return {"state": state, "in the queue": length, "after a worker started": tour.backend.reaches(promise, "SUCCESS")}


@lost.step(
    "A misspelt queue name is refused, because of a setting",
    covers=("a misspelt queue",),
    expect={"the caller got": error("QueueNotFound", "Queue 'highh' missing from task_queues"), "in that queue": 0},
    learn="By default Celery creates a queue of any name, which no worker consumes: set "
    "`task_create_missing_queues=False`.",
)
def misspelt(tour: Tour) -> Evidence:
    error = tour.raised(lambda: basic.add.apply_async((1, 1), queue="highh"))
    return {"the caller got": error, "in that queue": tour.broker.waiting("highh")}


json_only = CONCEPT.lesson("no-json", "An argument that is not JSON")


@json_only.step(
    "The caller gets an error, nothing is sent",
    covers=("an argument that is not JSON",),
    expect={"the caller got": error("EncodeError"), "messages published": 0},
    learn="Objects, files, connections and transactions cannot be sent; send an id or a name.",
)
def no_json(tour: Tour) -> Evidence:
    queue = tour.queue()
    error = tour.raised(lambda: basic.echo.apply_async((open,), queue=queue))
    return {"the caller got": error, "messages published": tour.broker.waiting(queue)}


deploys = CONCEPT.lesson("changed-signature", "A new version of a task, while messages of the old one wait")


@deploys.step(
    "The message was sent yesterday, the code is today's",
    shows=(practices.greet, practices.greet_compatibly),
    covers=("a changed signature while old messages wait",),
    expect={"without a default": error("TypeError", "missing 1 required"), "with a default": "hello celery"},
    learn="Old messages are still there after a deployment: add arguments with defaults, and remove one only after no "
    "caller sends it any more.",
)
def yesterday(tour: Tour) -> Evidence:
    broken = app.send_task("tour.tasks.practices.greet", ("celery",), ignore_result=False)
    fine = app.send_task("tour.tasks.practices.greet_compatibly", ("celery",), ignore_result=False)
    return {"without a default": tour.backend.result(broken), "with a default": tour.backend.result(fine)}


eager = CONCEPT.lesson("eager-only", "Testing with eager mode only")


@eager.step(
    "It works in the test, but not with a worker",
    shows=(practices.unique,),
    covers=("testing with eager mode only",),
    expect={"eager": ["milk", "tea"], "by a worker": matching("EncodeError|not JSON", "an error: a set is not JSON")},
    learn="Eager mode calls a function: no JSON, no broker, no second process. Use it for logic, and test delivery on "
    "a real stack.",
)
def only(tour: Tour) -> Evidence:
    words = ["tea", "milk", "tea"]
    return {
        "eager": tour.returned(lambda: sorted(practices.unique.apply((words,)).get())),
        "by a worker": tour.backend.result(practices.unique.delay(words)),
    }


transactions = CONCEPT.lesson("transactions", "A transaction of a database, and a task")


@transactions.step(
    "Published inside the transaction, after it, and from an outbox",
    shows=(orders.ship, orders.place_inside, orders.place_after, orders.place, orders.relay),
    covers=("a transaction and a task",),
    expect={
        "inside the transaction": error("LookupError", "there is no order 1"),
        "after the commit": "shipped: tea",
        "a crash after the commit": error("CrashError"),
        "by the outbox": "shipped: tea",
        "tasks for the four orders": 3,
    },
    learn="Publish after the commit; if no task may be lost, write it to a table in the same transaction and publish "
    "from there.",
)
def transaction(tour: Tour) -> Evidence:
    worker, path = tour.worker("--concurrency=1", "--include=tour.tasks.orders"), str(tour.folder / "shop.sqlite")
    inside = orders.place_inside(path, 1, worker.queue)
    after = orders.place_after(path, 2, worker.queue)
    crashed = tour.raised(lambda: orders.place_after(path, 3, worker.queue, crash=True))
    orders.place(path, 4)  # a crash here loses nothing: the outbox is in the database
    (relayed,) = orders.relay(path, worker.queue)
    sent = tour.events.wait("sent", name="tour.tasks.orders.ship", count=3)
    return {
        "inside the transaction": tour.backend.result(inside),
        "after the commit": tour.backend.result(after),
        "a crash after the commit": crashed,
        "by the outbox": tour.backend.result(relayed),
        "tasks for the four orders": sent.map(len),
    }


tests = CONCEPT.lesson("test-worker", "A test with a real worker")


@tests.step(
    "start_worker runs a worker in a thread of the test",
    shows=(testing.unique, testing.sorted_words, testing.test_with_a_worker),
    covers=("testing with a real worker",),
    expect={
        "a set": matching("^FAILURE .*JSON", "FAILURE: a set is not JSON"),
        "a list": "SUCCESS ['milk', 'tea']",
    },
    learn="A worker in a thread finds what eager mode hides, without Redis; delivery and its faults need a real stack.",
)
def with_worker(tour: Tour) -> Evidence:
    printed = tour.printed("tour.tasks.testing")
    return {"a set": printed.map(lambda lines: lines[0]), "a list": printed.map(lambda lines: lines[1])}
