"""Definition and execution."""

from celery_app import app
from tasks import advanced, arguments, basic, shared
from tour.evidence import Evidence, both, error, matching, worker_of
from tour.lesson import Concept
from tour.tasks import practices
from tour.tour import Tour

CONCEPT = Concept(
    "Definition and execution",
    "execution",
    "A task is a function that a worker runs in another process when it receives a message.",
)

calling = CONCEPT.lesson("calling", "Four ways to call a task, and what each does")


@calling.step(
    "delay sends a message, and a worker runs the task",
    shows=(basic.add,),
    covers=("delay",),
    expect={"path": ["sent", "received", "started", "succeeded"], "result": 4, "worker": worker_of("low")},
    learn="`delay` only puts a message into a queue and returns at once; it returns an AsyncResult, not the result.",
)
def delay(tour: Tour) -> Evidence:
    promise = basic.add.delay(2, 2)
    return {
        "path": tour.events.path(promise),
        "result": tour.backend.result(promise),
        "worker": tour.backend.meta(promise, "worker"),
    }


@calling.step(
    "apply_async takes options: queue, priority, time",
    covers=("apply_async",),
    expect={"queue": "high", "result": 42, "worker": worker_of("high")},
    learn="`delay(2, 2)` is short for `apply_async((2, 2))`; options of the message need `apply_async`.",
)
def apply_async(tour: Tour) -> Evidence:
    promise = basic.add.apply_async((40, 2), queue="high", priority=3, countdown=0.5)
    return {
        "queue": tour.backend.meta(promise, "queue"),
        "result": tour.backend.result(promise),
        "worker": tour.backend.meta(promise, "worker"),
    }


@calling.step(
    "apply runs the task in the calling process, without a worker",
    covers=("apply",),
    expect={"messages published": 0, "stored in the backend": False},
    learn="`apply` and a plain call are function calls: no message is sent, and no worker is involved.",
)
def apply(tour: Tour) -> Evidence:
    queue = tour.queue()
    eager = basic.add.apply((2, 2), queue=queue)
    return {
        "messages published": tour.broker.waiting(queue),
        "stored in the backend": tour.backend.stored(eager),
    }


@calling.step(
    "send_task needs only the task's name",
    covers=("send_task",),
    expect={"result": 4, "name": "tasks.basic.add"},
    learn="A caller without the task's code sends by name; then the arguments are only checked by the worker.",
)
def send_task(tour: Tour) -> Evidence:
    promise = app.send_task("tasks.basic.add", (2, 2))
    return {"result": tour.backend.result(promise), "name": tour.backend.meta(promise, "name")}


bound = CONCEPT.lesson("bound-tasks", "A task that reads its own message")


@bound.step(
    "bind=True passes the task itself as its first argument",
    shows=(basic.whoami,),
    covers=("bound tasks",),
    expect={"its id is right": True, "its priority": 2, "retries": 0, "its worker is right": True},
    learn="`self.request` is the message that is being processed; `self` has retry, update_state and replace.",
)
def bind(tour: Tour) -> Evidence:
    promise = basic.whoami.apply_async(priority=2)
    said = tour.backend.result(promise)
    return {
        "its id is right": said.map(lambda s: s["id"] == promise.id),
        "its priority": said.map(lambda s: s["priority"]),
        "retries": said.map(lambda s: s["retries"]),
        "its worker is right": both(said, tour.events.wait("started", of=[promise])).map(
            lambda pair: pair[0]["worker"] == pair[1][0].worker
        ),
    }


names = CONCEPT.lesson("names", "Task names")


@names.step(
    "The default name is module.function, another can be given",
    shows=(basic.hello,),
    covers=("names",),
    expect={"name of add": "tasks.basic.add", "name of hello": "greetings.hello", "result": "hello celery"},
    learn="The message contains only the name: after a rename the waiting messages are for an unknown task.",
)
def name(tour: Tour) -> Evidence:
    first, second = basic.add.delay(1, 1), basic.hello.delay("celery")
    return {
        "name of add": tour.backend.meta(first, "name"),
        "name of hello": tour.backend.meta(second, "name"),
        "result": tour.backend.result(second),
    }


@names.step(
    "shared_task is registered with every app; autodiscovery finds it",
    shows=(shared.shout,),
    covers=("shared_task", "autodiscovery"),
    expect={"registered at the worker": True, "result": "SHOUT"},
    learn="A library defines tasks with `shared_task`, without an app; `app.autodiscover_tasks` imports them.",
)
def shared_task(tour: Tour) -> Evidence:
    promise = shared.shout.delay("shout")
    worker = tour.backend.meta(promise, "worker").value
    return {
        "registered at the worker": tour.inspect("registered", worker).map(lambda tasks: "tasks.shared.shout" in tasks),
        "result": tour.backend.result(promise),
    }


args = CONCEPT.lesson("arguments", "Where wrong arguments are detected")


@args.step(
    "The number of arguments is checked by the caller",
    covers=("argument checking",),
    expect={"the caller got": error("TypeError", "missing 1 required"), "messages published": 0},
    learn="Celery checks a call against the function's signature before it sends a message.",
)
def signature(tour: Tour) -> Evidence:
    queue = tour.queue()
    error = tour.raised(lambda: basic.add.apply_async((2,), queue=queue))
    return {"the caller got": error, "messages published": tour.broker.waiting(queue)}


@args.step(
    "Their types are checked by the task, before it runs",
    shows=(arguments.checked,),
    covers=("pydantic arguments",),
    expect={
        "path": ["sent", "received", "started", "failed"],
        "error": "ArgumentError: x: should be a valid number; it is 'two'",
    },
    learn="A wrong argument fails at once, with an error that names it, and without a retry.",
)
def check(tour: Tour) -> Evidence:
    promise = basic.add.delay("two", 2)
    return {"path": tour.events.path(promise), "error": tour.backend.result(promise)}


@args.step(
    "pydantic=True converts JSON to a model and a model to JSON",
    shows=(basic.Order, basic.Receipt, basic.buy),
    covers=("pydantic arguments",),
    expect={
        "result": {"item": "tea", "total": 7.5},
        "error of a bad order": matching(r"ValidationError'>\(\[\]\)", "the error ValidationError, without its text"),
    },
    learn="The model checks the arguments; but the backend cannot store the text of pydantic's own error.",
)
def models(tour: Tour) -> Evidence:
    good = basic.buy.delay({"item": "tea", "quantity": 3, "price": 2.5})
    bad = basic.buy.delay({"item": "tea", "quantity": -3, "price": 2.5})
    return {"result": tour.backend.result(good), "error of a bad order": tour.backend.result(bad)}


@args.step(
    "Better: check in the task, and raise an error that can be stored as JSON",
    shows=(basic.buy_checked,),
    covers=("pydantic arguments",),
    expect={"error": "ArgumentError: order.quantity: should be greater than 0; it is -3", "retries": 0},
    learn="An exception is stored as its class and its arguments: give it one argument, a sentence.",
)
def checked_models(tour: Tour) -> Evidence:
    promise = basic.buy_checked.delay({"item": "tea", "quantity": -3, "price": 2.5})
    return {"error": tour.backend.result(promise), "retries": tour.backend.meta(promise, "retries")}


logging = CONCEPT.lesson("logging", "Log lines with the task's name and id")


@logging.step(
    "get_task_logger adds the task's name and id",
    shows=(basic.note,),
    covers=("get_task_logger",),
    expect={
        "line in the worker's log": matching(
            r"tasks\.basic\.note\[[0-9a-f-]{36}\]: noted: tea is ready", "the task's name, its id, and the text"
        )
    },
    learn="Log with `get_task_logger`: then a task's lines can be found by its id in the logs of all workers.",
)
def task_logger(tour: Tour) -> Evidence:
    worker = tour.worker("--concurrency=1")
    promise = basic.note.apply_async(("tea is ready",), queue=worker.queue)
    lines = worker.log(f"{promise.id}.*noted")
    return {"line in the worker's log": lines.map(lambda found: found[0])}


@logging.step(
    "ignore_result=True: it runs, and nothing is stored",
    covers=("ignore_result",),
    expect={"path": ["sent", "received", "started", "succeeded"], "state": "PENDING", "stored in the backend": False},
    learn="Results of most tasks are never read: do not store them (here the default), and do not wait for them.",
)
def ignored(tour: Tour) -> Evidence:
    promise = basic.note.delay("without a result")
    return {
        "path": tour.events.path(promise),
        "state": tour.backend.state(promise),
        "stored in the backend": tour.backend.stored(promise),
    }


classes = CONCEPT.lesson("task-classes", "A base class of your own")


@classes.step(
    "Hooks of a base class run before and after each of its tasks",
    shows=(advanced.HookedTask, advanced.divide),
    covers=("custom Task base class",),
    expect={
        "noted by the hooks": ["before_start", "on_success 2.0", "after_return SUCCESS"],
        "noted after a failure": ["before_start", "on_failure ZeroDivisionError", "after_return FAILURE"],
    },
    learn="A base class is for what several tasks have in common: hooks, retries, shared clients.",
)
def hooks(tour: Tour) -> Evidence:
    fine, broken = tour.name("fine"), tour.name("broken")
    advanced.divide.delay(fine, 4, 2)
    advanced.divide.delay(broken, 4, 0)
    return {"noted by the hooks": tour.noted(fine, 3), "noted after a failure": tour.noted(broken, 3)}


coroutines = CONCEPT.lesson("async-code", "Async code in a task")


@coroutines.step(
    "A task is a function; it runs a coroutine with asyncio.run",
    shows=(practices.fetch, practices.fetch_as_coroutine, practices.fetch_all),
    covers=("async code",),
    expect={
        "a coroutine as the task": matching("coroutine", "an error: a coroutine is not JSON"),
        "seconds of waits in one task": 6.0,
        "took less than that": True,
    },
    learn="Celery does not await: call `asyncio.run` in the task. Its waits run side by side, but hold one slot.",
)
def asynchronous(tour: Tour) -> Evidence:
    coroutine, all_of_them = practices.fetch_as_coroutine.delay(0.1), practices.fetch_all.delay(0.3, 20)
    said = tour.backend.result(all_of_them)
    return {
        "a coroutine as the task": tour.backend.result(coroutine),
        "seconds of waits in one task": said.map(lambda s: s["waits in total"]),
        "took less than that": said.map(lambda s: s["seconds"] < s["waits in total"]),
    }
