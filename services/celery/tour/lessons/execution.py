"""Definition and execution."""

from celery_app import app
from tasks import advanced, arguments, basic, shared
from tour.lesson import Concept, Evidence, both, matching
from tour.tour import Tour

CONCEPT = Concept(
    "Definition and execution",
    "execution",
    "A task is a function that a worker runs, in another process, because a message asks for it.",
)

calling = CONCEPT.lesson("calling", "Four ways to call a task, and what each really does")


@calling.step(
    "delay sends a message, and a worker runs the task",
    shows=(basic.add,),
    covers=("delay",),
    expect={"path": ["sent", "received", "started", "succeeded"], "result": 4, "worker": matching("^low@")},
    learn="`delay` only puts a message into a queue and returns at once; what you get is a promise, not a number.",
)
def delay(tour: Tour) -> Evidence:
    promise = basic.add.delay(2, 2)
    return {
        "path": tour.events.path(promise),
        "result": tour.backend.result(promise),
        "worker": tour.backend.meta(promise, "worker"),
    }


@calling.step(
    "apply_async takes options as well: where, how urgent, when",
    covers=("apply_async",),
    expect={"queue": "high", "result": 42, "worker": matching("^high@")},
    learn="`delay(2, 2)` is short for `apply_async((2, 2))`; whatever is to be said of the message goes into "
    "the latter.",
)
def apply_async(tour: Tour) -> Evidence:
    promise = basic.add.apply_async((40, 2), queue="high", priority=3, countdown=0.5)
    return {
        "queue": tour.backend.meta(promise, "queue"),
        "result": tour.backend.result(promise),
        "worker": tour.backend.meta(promise, "worker"),
    }


@calling.step(
    "apply runs the task here and now, without a worker",
    covers=("apply",),
    expect={"messages published": 0, "stored in the backend": False},
    learn="`apply` and a plain call are ordinary function calls; nothing reaches the broker, no worker knows of them.",
)
def apply(tour: Tour) -> Evidence:
    queue = tour.queue()
    eager = basic.add.apply((2, 2), queue=queue)
    return {
        "messages published": tour.broker.waiting(queue),
        "stored in the backend": tour.backend.stored(eager),
    }


@calling.step(
    "send_task needs nothing but the task's name",
    covers=("send_task",),
    expect={"result": 4, "name": "tasks.basic.add"},
    learn="A caller that does not have the task's code sends by name; nobody checks the arguments before the "
    "worker does.",
)
def send_task(tour: Tour) -> Evidence:
    promise = app.send_task("tasks.basic.add", (2, 2))
    return {"result": tour.backend.result(promise), "name": tour.backend.meta(promise, "name")}


bound = CONCEPT.lesson("bound-tasks", "A task that knows who runs it, and why")


@bound.step(
    "bind=True gives the task itself as its first argument",
    shows=(basic.whoami,),
    covers=("bound tasks",),
    expect={"it knows its id": True, "it knows its priority": 2, "retries": 0, "ran where it says": True},
    learn="`self.request` is the message that is being worked on; `self` has retry, update_state and replace.",
)
def bind(tour: Tour) -> Evidence:
    promise = basic.whoami.apply_async(priority=2)
    said = tour.backend.result(promise)
    return {
        "it knows its id": said.map(lambda s: s["id"] == promise.id),
        "it knows its priority": said.map(lambda s: s["priority"]),
        "retries": said.map(lambda s: s["retries"]),
        "ran where it says": both(said, tour.events.wait("started", of=[promise])).map(
            lambda pair: pair[0]["worker"] == pair[1][0].worker
        ),
    }


names = CONCEPT.lesson("names", "A task's name is its address")


@names.step(
    "The default name is module.function, another can be given",
    shows=(basic.hello,),
    covers=("names",),
    expect={"name of add": "tasks.basic.add", "name of hello": "greetings.hello", "result": "hello celery"},
    learn="The message carries the name only; rename a task, and messages that still wait are for nobody.",
)
def name(tour: Tour) -> Evidence:
    first, second = basic.add.delay(1, 1), basic.hello.delay("celery")
    return {
        "name of add": tour.backend.meta(first, "name"),
        "name of hello": tour.backend.meta(second, "name"),
        "result": tour.backend.result(second),
    }


@names.step(
    "shared_task belongs to whichever app there is; autodiscovery finds it",
    shows=(shared.shout,),
    covers=("shared_task", "autodiscovery"),
    expect={"registered at the worker": True, "result": "SHOUT"},
    learn="A library defines tasks with `shared_task` and knows no app; `app.autodiscover_tasks` imports them.",
)
def shared_task(tour: Tour) -> Evidence:
    promise = shared.shout.delay("shout")
    worker = tour.backend.meta(promise, "worker").value
    return {
        "registered at the worker": tour.inspect("registered", worker).map(lambda tasks: "tasks.shared.shout" in tasks),
        "result": tour.backend.result(promise),
    }


args = CONCEPT.lesson("arguments", "Wrong arguments: where they are noticed")


@args.step(
    "The number of arguments is checked where the task is called",
    covers=("argument checking",),
    expect={"the caller got": matching("TypeError: add.. missing 1 required"), "messages published": 0},
    learn="Celery compares a call with the function's signature before it sends anything.",
)
def signature(tour: Tour) -> Evidence:
    queue = tour.queue()
    error = tour.raised(lambda: basic.add.apply_async((2,), queue=queue))
    return {"the caller got": error, "messages published": tour.broker.waiting(queue)}


@args.step(
    "Their kind is checked by the task, before it does anything",
    shows=(arguments.checked,),
    covers=("pydantic arguments",),
    expect={
        "path": ["sent", "received", "started", "failed"],
        "error": "ArgumentError: x: should be a valid number; it is 'two'",
    },
    learn="A wrong argument fails at once, with a message that names it; trying again would not mend it.",
)
def check(tour: Tour) -> Evidence:
    promise = basic.add.delay("two", 2)
    return {"path": tour.events.path(promise), "error": tour.backend.result(promise)}


@args.step(
    "pydantic=True turns JSON into a model and a model into JSON",
    shows=(basic.Order, basic.Receipt, basic.buy),
    covers=("pydantic arguments",),
    expect={"result": {"item": "tea", "total": 7.5}, "error of a bad order": matching(r"ValidationError'>\(\[\]\)")},
    learn="The model checks what arrives; but pydantic's own error does not survive the backend, see what is "
    "left of it.",
)
def models(tour: Tour) -> Evidence:
    good = basic.buy.delay({"item": "tea", "quantity": 3, "price": 2.5})
    bad = basic.buy.delay({"item": "tea", "quantity": -3, "price": 2.5})
    return {"result": tour.backend.result(good), "error of a bad order": tour.backend.result(bad)}


@args.step(
    "The cure: check in the task, raise an error that JSON can carry",
    shows=(basic.buy_checked,),
    covers=("pydantic arguments",),
    expect={"error": "ArgumentError: order.quantity: should be greater than 0; it is -3", "retries": 0},
    learn="An exception crosses to the caller as its class and its arguments: give it one argument, a sentence.",
)
def checked_models(tour: Tour) -> Evidence:
    promise = basic.buy_checked.delay({"item": "tea", "quantity": -3, "price": 2.5})
    return {"error": tour.backend.result(promise), "retries": tour.backend.meta(promise, "retries")}


logging = CONCEPT.lesson("logging", "A task's log lines say which task wrote them")


@logging.step(
    "get_task_logger puts the task's name and id in front",
    shows=(basic.note,),
    covers=("get_task_logger",),
    expect={"line in the worker's log": matching(r"tasks\.basic\.note\[[0-9a-f-]{36}\]: noted: tea is ready")},
    learn="Log through `get_task_logger`, and one task's id finds its lines at whichever worker they were written.",
)
def task_logger(tour: Tour) -> Evidence:
    worker = tour.worker("--concurrency=1")
    promise = basic.note.apply_async(("tea is ready",), queue=worker.queue)
    lines = worker.log(f"{promise.id}.*noted")
    return {"line in the worker's log": lines.map(lambda found: found[0])}


@logging.step(
    "ignore_result=True: it ran, and left nothing",
    covers=("ignore_result",),
    expect={"path": ["sent", "received", "started", "succeeded"], "state": "PENDING", "stored in the backend": False},
    learn="Most tasks have no result that anybody reads: do not store it (here the default), and do not ask for it.",
)
def ignored(tour: Tour) -> Evidence:
    promise = basic.note.delay("nobody will ask")
    return {
        "path": tour.events.path(promise),
        "state": tour.backend.state(promise),
        "stored in the backend": tour.backend.stored(promise),
    }


classes = CONCEPT.lesson("task-classes", "A base class of your own")


@classes.step(
    "Hooks of a base class run around each task that has it",
    shows=(advanced.HookedTask, advanced.divide),
    covers=("custom Task base class",),
    expect={
        "noted by the hooks": ["before_start", "on_success 2.0", "after_return SUCCESS"],
        "noted after a failure": ["before_start", "on_failure ZeroDivisionError", "after_return FAILURE"],
    },
    learn="What all tasks of a kind have in common goes into a base class: hooks, retries, clients that they share.",
)
def hooks(tour: Tour) -> Evidence:
    fine, broken = tour.name("fine"), tour.name("broken")
    advanced.divide.delay(fine, 4, 2)
    advanced.divide.delay(broken, 4, 0)
    return {"noted by the hooks": tour.noted(fine, 3), "noted after a failure": tour.noted(broken, 3)}
