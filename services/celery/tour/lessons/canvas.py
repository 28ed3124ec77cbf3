"""Canvas."""

from celery import chain, chord, group

from tasks import basic, workflows
from tasks.basic import add
from tasks.workflows import square, total
from tour.evidence import Evidence, at_least, at_most, between, both, matching
from tour.lesson import Concept
from tour.tour import Tour

CONCEPT = Concept(
    "Canvas",
    "canvas",
    "Signatures can be combined: in sequence, in parallel, or in parallel with a callback.",
)

chains = CONCEPT.lesson("chains", "One task after another")


@chains.step(
    "Each task gets the result of the one before",
    shows=(workflows.add_then_square,),
    covers=("chain",),
    expect={"result": 25, "order": ["tasks.basic.add", "tasks.workflows.square"], "parent's result": 5},
    learn="A chain is sent as its first task; the worker that ends a task sends the next one.",
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
    "The bar operator makes a chain, too",
    covers=("chain",),
    expect={"result": 64},
    learn="`a | b | c` is a chain; a group before a bar makes it a chord.",
)
def bar(tour: Tour) -> Evidence:
    promise = (add.s(1, 1) | add.s(6) | square.s()).delay()
    return {"result": tour.backend.result(promise)}


groups = CONCEPT.lesson("groups", "Tasks in parallel")


@groups.step(
    "A group is sent at once; its results are in the order of its members",
    shows=(workflows.squares,),
    covers=("group",),
    expect={"messages": 4, "results": [1, 4, 9, 16]},
    learn="A group is one message per member; any idle worker takes the next one.",
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
    learn="`map` and `starmap` are one message for all calls, `chunks` is one for several: for very small tasks.",
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


chords = CONCEPT.lesson("chords", "Tasks in parallel, then one with all their results")


@chords.step(
    "The callback gets the results once all members have ended",
    shows=(workflows.square, workflows.total, workflows.sum_of_squares),
    covers=("chord",),
    expect={"result": 30, "last to start": "tasks.workflows.total"},
    learn="A chord is a group with a callback, which gets the results as a list in the group's order.",
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
        "error": matching(
            "ChordError: Dependency .* raised RuntimeError", "a ChordError that names the member's error"
        ),
        "noted by the error callback": matching(
            "tasks.workflows.total: Dependency", "the callback's name and the error"
        ),
        "runs of the callback": 0,
    },
    learn="Give the callback a `link_error`; else a failed chord is only noticed by a caller that reads its result.",
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
    learn="A group followed by another task becomes a chord: the next task waits for all members.",
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
    "replace runs other tasks instead; the caller keeps the same task id",
    shows=(workflows.power,),
    covers=("replace",),
    expect={"result": 81, "tasks that were started": at_least(7)},
    learn="Use it to decide at run time what to do: the replacement's result is stored under the first task's id.",
)
def replace(tour: Tour) -> Evidence:
    promise = workflows.power.delay(3, 4)
    result = tour.backend.result(promise)
    return {"result": result, "tasks that were started": tour.events.wait("started", count=7).map(len)}


stamps = CONCEPT.lesson("stamping", "A label on every task of a workflow")


@stamps.step(
    "A visitor stamps every task of the workflow",
    shows=(workflows.OrderStamp,),
    covers=("stamping",),
    expect={"stamp of the first": "A-17", "stamp of the last": "A-17"},
    learn="Stamps are sent with each message and stored with each result; tasks can be found and revoked by them.",
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


sizes = CONCEPT.lesson("canvas-size", "Messages contain the rest of their workflow")


@sizes.step(
    "A chain's first message contains all following tasks",
    covers=("size of a canvas message",),
    expect={"bytes with 10 members": between(3_000, 20_000, "bytes"), "with 100 members": at_least(5, "times as many")},
    learn="Every message of a canvas contains the rest of it: a large one is sent, stored and parsed at each step.",
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
    "The same calls in chunks",
    covers=("why a huge chord needs chunks",),
    expect={
        "messages of a chord of 100": 100,
        "messages in chunks of 20": 5,
        "bytes in total, chunks to chord": at_most(0.2, "of it"),
    },
    learn="Split large jobs into chunks, and send ids of data instead of data, as tasks/search.py does.",
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
        "bytes in total, chunks to chord": both(chunked, single).map(
            lambda pair: sum(message.size for message in pair[0]) / sum(message.size for message in pair[1])
        ),
    }
