"""Canvas."""

from celery import chain, chord, group

from tasks import basic, workflows
from tasks.basic import add
from tasks.workflows import square, total
from tour.lesson import Concept, Evidence, at_least, at_most, between, both, matching
from tour.tour import Tour

CONCEPT = Concept(
    "Canvas",
    "canvas",
    "Signatures combine: one after another, side by side, side by side and then together. Workers do the rest.",
)

chains = CONCEPT.lesson("chains", "One task after another")


@chains.step(
    "Each task gets the result of the one before",
    shows=(workflows.add_then_square,),
    covers=("chain",),
    expect={"result": 25, "order": ["tasks.basic.add", "tasks.workflows.square"], "parent's result": 5},
    learn="A chain is sent as its first task; each worker that ends one sends the next.",
)
def in_a_row(tour: Tour) -> Evidence:
    promise = workflows.add_then_square(2, 3).delay()
    started = tour.events.wait("started", count=2)
    return {
        "result": tour.backend.result(promise),
        "order": started.map(lambda events: [event.name for event in events]),
        "parent's result": tour.backend.result(promise.parent),
    }


@chains.step(
    "The bar operator says the same",
    covers=("chain",),
    expect={"result": 64},
    learn="`a | b | c` is a chain, too; a group after the bar makes a chord of it.",
)
def bar(tour: Tour) -> Evidence:
    promise = (add.s(1, 1) | add.s(6) | square.s()).delay()
    return {"result": tour.backend.result(promise)}


groups = CONCEPT.lesson("groups", "Tasks side by side")


@groups.step(
    "A group is sent at once; its results come in its own order",
    shows=(workflows.squares,),
    covers=("group",),
    expect={"messages": 4, "results": [1, 4, 9, 16]},
    learn="A group is as many messages as it has members; whoever is free takes the next.",
)
def side_by_side(tour: Tour) -> Evidence:
    promise = workflows.squares([1, 2, 3, 4]).delay()
    return {
        "messages": tour.events.wait("sent", of=promise.results, count=4).map(len),
        "results": tour.all_results(promise),
    }


@groups.step(
    "map, starmap and chunks put many calls into few messages",
    covers=("map", "starmap", "chunks"),
    expect={"map": [1, 4, 9], "starmap": [3, 7], "chunks": [[1, 4], [9, 16], [25]], "messages of the chunks": 3},
    learn="`map` and `starmap` are one message for all calls; `chunks` is one for so many: work that is worth "
    "its message.",
)
def fewer_messages(tour: Tour) -> Evidence:
    mapped = square.map([1, 2, 3]).apply_async(ignore_result=False)
    starmapped = add.starmap([(1, 2), (3, 4)]).apply_async(ignore_result=False)
    chunked = square.chunks([(n,) for n in range(1, 6)], 2).group().apply_async(ignore_result=False)
    return {
        "map": tour.backend.result(mapped),
        "starmap": tour.backend.result(starmapped),
        "chunks": tour.all_results(chunked),
        "messages of the chunks": tour.events.wait("sent", of=chunked.results, count=3).map(len),
    }


chords = CONCEPT.lesson("chords", "Tasks side by side, then one with all their results")


@chords.step(
    "The callback gets the results once all are there",
    shows=(workflows.square, workflows.total, workflows.sum_of_squares),
    covers=("chord",),
    expect={"result": 30, "last to start": "tasks.workflows.total"},
    learn="A chord is a group with a callback: it gets the results as a list, in the group's order, whoever was first.",
)
def callback(tour: Tour) -> Evidence:
    promise = workflows.sum_of_squares([1, 2, 3, 4]).delay()
    started = tour.events.wait("started", count=5)
    return {
        "result": tour.backend.result(promise),
        "last to start": started.map(lambda events: events[-1].name),
    }


@chords.step(
    "A member fails: the callback never runs, its error callback does",
    shows=(workflows.note_failure,),
    covers=("a chord whose member fails",),
    expect={
        "state of the callback": "FAILURE",
        "error": matching("ChordError: Dependency .* raised RuntimeError"),
        "noted by the error callback": matching("tasks.workflows.total: Dependency"),
        "runs of the callback": 0,
    },
    learn="Give the callback a `link_error`; else a chord that cannot end is only seen by who asks for its result.",
)
def failing_member(tour: Tour) -> Evidence:
    name = tour.name("chord")
    body = total.s().on_error(workflows.note_failure.s(name))
    promise = chord([square.s(2), basic.failing.si("a member")], body).delay()
    return {
        "state of the callback": tour.backend.reaches(promise, "FAILURE"),
        "error": tour.backend.result(promise),
        "noted by the error callback": tour.noted(name, 1).map(lambda lines: lines[0]),
        "runs of the callback": tour.events.wait("started", of=[promise], count=0).map(len),
    }


nested = CONCEPT.lesson("nested-canvas", "Workflows inside workflows")


@nested.step(
    "A group of chains, and a chord in the middle of a chain",
    covers=("chain of groups", "chord in a chain"),
    expect={"group of chains": [4, 16], "chord in a chain": 100, "groups in a row": [26, 101]},
    learn="A group followed by anything becomes a chord; what follows waits for all of the group.",
)
def inside(tour: Tour) -> Evidence:
    chains_side_by_side = group(add.s(1, 1) | square.s(), add.s(2, 2) | square.s()).delay()
    chord_in_chain = chain(add.s(1, 1), group(add.s(1), add.s(5)), total.s(), square.s()).delay()
    groups_in_a_row = chain(
        group(add.s(1, 1), add.s(1, 2)), total.s(), group(add.s(0), add.s(5)), workflows.squared_each.s(1)
    ).delay()
    return {
        "group of chains": tour.all_results(chains_side_by_side),
        "chord in a chain": tour.backend.result(chord_in_chain),
        "groups in a row": tour.backend.result(groups_in_a_row),
    }


replaced = CONCEPT.lesson("replace", "A task that becomes a workflow while it runs")


@replaced.step(
    "replace puts other tasks in its place; the caller keeps the same promise",
    shows=(workflows.power,),
    covers=("replace",),
    expect={"result": 81, "tasks that were started": at_least(7)},
    learn="Decide at run time what has to be done: the replacement's result becomes the result of the first task's id.",
)
def replace(tour: Tour) -> Evidence:
    promise = workflows.power.delay(3, 4)
    result = tour.backend.result(promise)
    return {"result": result, "tasks that were started": tour.events.wait("started", count=7).map(len)}


stamps = CONCEPT.lesson("stamping", "A label on every task of a workflow")


@stamps.step(
    "A visitor stamps whatever the workflow contains",
    shows=(workflows.OrderStamp,),
    covers=("stamping",),
    expect={"stamp of the first": "A-17", "stamp of the last": "A-17"},
    learn="Stamps travel with each message and are stored with each result; tasks can be found and revoked by them.",
)
def stamp(tour: Tour) -> Evidence:
    workflow = workflows.add_then_square(1, 1)
    workflow.stamp(workflows.OrderStamp("A-17"))
    promise = workflow.apply_async()
    tour.backend.result(promise)
    return {
        "stamp of the first": tour.backend.meta(promise.parent, "order"),
        "stamp of the last": tour.backend.meta(promise, "order"),
    }


sizes = CONCEPT.lesson("canvas-size", "A workflow travels inside its messages")


@sizes.step(
    "A chain's first message carries all that follows",
    covers=("size of a canvas message",),
    expect={"bytes with 10 members": between(3_000, 20_000, "bytes"), "with 100 members": at_least(5, "times as many")},
    learn="Every message of a canvas contains its rest: a huge one is sent, stored and parsed again at each step.",
)
def growing(tour: Tour) -> Evidence:
    queue = tour.queue()
    sizes = []
    for members in (10, 100):
        workflow = chain(add.si(1, 1).set(queue=queue), group(square.si(n) for n in range(members)), total.s())
        workflow.apply_async()
        sizes.append(tour.broker.take(queue).map(lambda messages: messages[0].size))
    small, large = sizes
    return {
        "bytes with 10 members": small,
        "with 100 members": both(small, large).map(lambda pair: pair[1] / pair[0]),
    }


@sizes.step(
    "The same work in chunks",
    covers=("why a huge chord needs chunks",),
    expect={
        "messages of a chord of 100": 100,
        "messages in chunks of 20": 5,
        "bytes in all, chunks to chord": at_most(0.2, "of it"),
    },
    learn="Cut large work into chunks, and send ids of data rather than data: tasks/search.py indexes a folder "
    "that way.",
)
def chunks(tour: Tour) -> Evidence:
    queue, numbers = tour.queue(), range(100)
    chord([square.s(n).set(queue=queue) for n in numbers], total.s()).apply_async()
    single = tour.broker.take(queue, 100)
    square.chunks([(n,) for n in numbers], 20).group().apply_async(queue=queue)
    chunked = tour.broker.take(queue, 5)
    return {
        "messages of a chord of 100": single.map(len),
        "messages in chunks of 20": chunked.map(len),
        "bytes in all, chunks to chord": both(chunked, single).map(
            lambda pair: sum(message.size for message in pair[0]) / sum(message.size for message in pair[1])
        ),
    }
