"""Signatures."""

import json

from celery import chain, signature

from tasks import basic, workflows
from tour.evidence import Evidence, both, matching
from tour.lesson import Concept
from tour.tour import Tour

CONCEPT = Concept(
    "Signatures",
    "signatures",
    "A signature describes a call: task, arguments and options as one object, to be sent or combined.",
)

calls = CONCEPT.lesson("partials", "A call as an object: complete, partial, immutable")


@calls.step(
    "add.s(2, 2) is a call for later",
    covers=("add.s(2, 2).delay()",),
    expect={"result": 4},
    learn="`.s()` makes a signature; `.delay()` and `.apply_async()` send it, calling it runs it in this process.",
)
def whole(tour: Tour) -> Evidence:
    promise = basic.add.s(2, 2).delay()
    return {"result": tour.backend.result(promise)}


@calls.step(
    "A partial signature gets the rest of its arguments later",
    covers=("partial",),
    expect={"arguments of the task": matching(r"\b3, 2\b", "3, then 2"), "result": 5},
    learn="Arguments of the call go before those of the signature; in a chain that is the result of the task before.",
)
def partial(tour: Tour) -> Evidence:
    promise = basic.add.s(2).delay(3)
    return {
        "arguments of the task": tour.backend.meta(promise, "args").map(str),
        "result": tour.backend.result(promise),
    }


@calls.step(
    "si() accepts no more arguments",
    covers=("immutable si",),
    expect={"result": 2},
    learn="In a chain an immutable signature does not get the result of the task before it.",
)
def immutable(tour: Tour) -> Evidence:
    promise = chain(basic.add.s(40, 2), basic.add.si(1, 1)).delay()
    return {"result": tour.backend.result(promise)}


options = CONCEPT.lesson("signature-options", "Options on a signature; clone; a signature as JSON")


@options.step(
    "set() sets options, clone() makes a copy with changes",
    covers=("options on a signature", "clone"),
    expect={
        "queue of the first": "high",
        "priority of the first": 1,
        "result of the clone": 50,
        "queue of the clone": "high",
    },
    learn="Options are part of the signature; a clone does not change the original.",
)
def set_and_clone(tour: Tour) -> Evidence:
    urgent = basic.whoami.s().set(queue="high", priority=1)
    first, second = urgent.delay(), basic.add.s(8).set(queue="high").clone(args=(42,)).delay()
    return {
        "queue of the first": tour.backend.meta(first, "queue"),
        "priority of the first": tour.backend.result(first).map(lambda said: said["priority"]),
        "result of the clone": tour.backend.result(second),
        "queue of the clone": tour.backend.meta(second, "queue"),
    }


@options.step(
    "A signature is plain data: it can be stored and sent, and called elsewhere",
    covers=("serialising a signature",),
    expect={"result": 4},
    learn="A signature is a dict; as JSON it fits into a database row or into another task's arguments.",
)
def serialised(tour: Tour) -> Evidence:
    text = json.dumps(basic.add.s(2, 2))
    promise = signature(json.loads(text)).delay()
    return {"result": tour.backend.result(promise)}


links = CONCEPT.lesson("links", "Callbacks when a task has ended: link and link_error")


@links.step(
    "link: called with the result",
    covers=("link",),
    expect={"result": 4, "result of the callback": 14},
    learn="The worker sends a linked signature when the task has succeeded; a chain is built from such links.",
)
def link(tour: Tour) -> Evidence:
    promise = basic.add.apply_async((2, 2), link=basic.add.s(10))
    result = tour.backend.result(promise)
    return {"result": result, "result of the callback": tour.backend.result(promise.children[0])}


@links.step(
    "link_error: called with the failure",
    shows=(workflows.note_failure,),
    covers=("link_error",),
    expect={"path": ["sent", "received", "started", "failed"], "noted by the callback": True},
    learn="An error callback that takes request, exception and traceback is called by the worker itself, at once.",
)
def link_error(tour: Tour) -> Evidence:
    name = tour.name("failure")
    promise = basic.failing.apply_async(("for its callback",), link_error=workflows.note_failure.s(name))
    noted = both(tour.noted(name, 1), tour.backend.result(promise))
    return {
        "path": tour.events.path(promise),
        "noted by the callback": noted.map(
            lambda pair: pair[0][0] == f"tasks.basic.failing: {pair[1].split(': ', 1)[1]}"
        ),
    }
