"""Serialisation."""

import json
import pickle
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from celery_app import app
from tasks import basic
from tasks.notes import KEPT_FOR, key
from tour.broker import Broker
from tour.evidence import Evidence, at_least, at_most, both, containing, error
from tour.lesson import Concept
from tour.tasks import practices, signing
from tour.tour import Tour

CONCEPT = Concept(
    "Serialisation",
    "serialisation",
    "A message is text that another process, another machine or another version of your code must be able to read.",
)

kinds = CONCEPT.lesson("json", "Arguments as JSON")


@kinds.step(
    "Some types are kept, some are converted, some are refused",
    shows=(basic.echo,),
    covers=("JSON", "what cannot be sent"),
    expect={
        "a tuple arrives as": "list",
        "a datetime arrives as": "datetime",
        "a Decimal arrives as": "Decimal",
        "a UUID arrives as": "UUID",
        "{1: 'one'} arrives as": {"1": "one"},
        "a function": error("EncodeError"),
    },
    learn="Send lists, strings, numbers and dicts with string keys; other types depend on extensions of kombu's JSON.",
)
def travel(tour: Tour) -> Evidence:
    plain = {
        "a tuple": (1, 2),
        "a datetime": datetime(2026, 1, 1, tzinfo=UTC),
        "a Decimal": Decimal("0.1"),
        "a UUID": UUID(int=7),
    }
    sent = {name: basic.echo.delay(value) for name, value in plain.items()}
    keys = basic.echo.delay({1: "one"})
    arrived = {name: tour.backend.result(promise) for name, promise in sent.items()}
    return {
        **{f"{name} arrives as": seen.map(lambda r: r["kind"]) for name, seen in arrived.items()},
        "{1: 'one'} arrives as": tour.backend.result(keys).map(lambda r: r["value"]),
        "a function": tour.raised(lambda: basic.echo.delay(print)),
    }


refused = CONCEPT.lesson("no-pickle", "Why not pickle")


class Bomb:
    """Unpickling it calls a function of its choice: here `print`, it could be `os.system`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("BOOM",)


@refused.step(
    "A pickled message is not decoded",
    shows=(Bomb,),
    covers=("why not pickle",),
    expect={"the worker's log": containing("Refusing to deserialize"), "printed by the bomb": 0, "next task": 2},
    learn="If pickle were accepted, any client of the broker could run any code in the workers: "
    "`accept_content` is JSON.",
)
def bomb(tour: Tour) -> Evidence:
    worker = tour.worker("--concurrency=1")
    with app.producer_or_acquire() as producer:
        producer.publish(
            pickle.dumps([[Bomb()], {}, {}]),
            content_type="application/x-python-serialize",
            content_encoding="binary",
            headers={"task": "tasks.basic.echo", "id": "pickled"},
            routing_key=worker.queue,
            exchange=worker.queue,
        )
    promise = basic.add.apply_async((1, 1), queue=worker.queue)
    return {
        "next task": tour.backend.result(promise),
        "the worker's log": worker.log("Refusing to deserialize|BOOM").map(lambda lines: lines[0]),
        "printed by the bomb": worker.log("ready|^BOOM").map(lambda lines: lines.count("BOOM")),
    }


ids = CONCEPT.lesson("ids", "Ids instead of objects")


@ids.step(
    "An object in a message is a copy from when it was sent",
    shows=(practices.print_label, practices.print_label_of),
    covers=("ids instead of objects",),
    expect={"sent with the address": "to Old Street", "sent with the customer's id": "to New Street"},
    learn="Send an id and let the task read the object: it gets the current state, and the message stays small.",
)
def stale(tour: Tour) -> Evidence:
    customer = tour.name("customer")
    tour.redis("SET", key(customer), "Old Street", "EX", KEPT_FOR)
    copy = practices.print_label.apply_async(("Old Street",), countdown=2)
    reference = practices.print_label_of.apply_async((customer,), countdown=2)
    tour.redis("SET", key(customer), "New Street", "EX", KEPT_FOR)  # the address changes while both wait
    return {
        "sent with the address": tour.backend.result(copy),
        "sent with the customer's id": tour.backend.result(reference),
    }


sizes = CONCEPT.lesson("compression", "Compressed messages")


@sizes.step(
    "compression= for one call, task_compression for all",
    shows=(basic.echo,),
    covers=("compression",),
    expect={"bytes, compressed to plain": at_most(0.2, "of it"), "the task gets": "str", "of length": 20_000},
    learn="Compression saves memory in Redis and costs CPU at both ends: for large arguments that an id cannot "
    "replace.",
)
def compressed(tour: Tour) -> Evidence:
    queue, text = tour.queue(), "a long text, " * 2000
    basic.echo.apply_async((text,), queue=queue)
    plain = tour.broker.take(queue).map(lambda messages: messages[0].size)
    basic.echo.apply_async((text,), queue=queue, compression="gzip")
    small = tour.broker.take(queue).map(lambda messages: messages[0].size)
    arrived = tour.backend.result(basic.echo.apply_async((text[:20_000],), compression="gzip"))
    return {
        "bytes, compressed to plain": both(small, plain).map(lambda sizes: sizes[0] / sizes[1]),
        "the task gets": arrived.map(lambda said: said["kind"]),
        "of length": arrived.map(lambda said: len(said["value"])),
    }


signed = CONCEPT.lesson("signing", "Signed messages")


def _signing(tour: Tour, key: str = "ours") -> dict[str, Any]:
    """The settings of a program that signs with this key."""
    folder = tour.folder / "keys"
    if not folder.exists():
        folder.mkdir()
        for each in ("ours", "theirs"):
            signing.make_key(folder, each)
    return signing.settings_with(str(folder), key)


def _published(tour: Tour, key: str = "ours") -> dict[str, Any]:
    """A signed message, as it is stored in a queue without a worker."""
    queue = tour.queue()
    tour.printed("tour.tasks.signing", queue, queue=queue, settings=_signing(tour, key))
    return dict(json.loads(tour.broker.take_raw(queue).value[0]))


@signed.step(
    "A signed message runs; any other becomes a dead letter",
    shows=(signing.settings_with, signing.changed),
    covers=("signing",),
    expect={
        "signed": "returned 2",
        "changed after it was signed": error("DecodeError", "Unable to deserialize"),
        "signed with an unknown key": error("SecurityError", "Unknown certificate"),
        "not signed": error("ContentDisallowed", "untrusted content of type json"),
        "a control command, not signed": containing("refused", "untrusted content of type json"),
    },
    learn="Celery's serializer `auth` signs arguments with RSA. All clients and workers need a key: `celery inspect` "
    "and Flower, without one, get no answer.",
)
def verified(tour: Tour) -> Evidence:
    worker = tour.worker("--concurrency=1", settings=_signing(tour))
    message = _published(tour)
    ours = tour.broker.put(worker.queue, message)
    other = tour.broker.put(worker.queue, signing.changed(message, b"[1, 1]", b"[1, 9]"))
    theirs = tour.broker.put(worker.queue, _published(tour, "theirs"))
    plain = basic.add.apply_async((1, 1), queue=worker.queue)
    refused = tour.fate(worker.queue, plain.id)
    app.control.broadcast("ping", destination=[worker.name])
    return {
        "signed": tour.fate(worker.queue, ours),
        "changed after it was signed": tour.fate(worker.queue, other),  # Celery 5.7 fails to say "Bad signature"
        "signed with an unknown key": tour.fate(worker.queue, theirs),
        "not signed": refused,
        "a control command, not signed": worker.log("remote control: refused").map(lambda lines: lines[0]),
    }


@signed.step(
    "What a signature does not cover",
    shows=(Broker.put,),
    covers=("signing",),
    expect={
        "published again, with another id": "returned 2",
        "to another task: 1 times 1": "returned 1",
        "a result, changed in Redis": 1000,
        "events read without a key": at_least(1),
    },
    learn="Only arguments and callbacks are signed, not the task's name, id and expiry, results, or events: protect "
    "the broker first.",
)
def not_covered(tour: Tour) -> Evidence:
    worker, message = tour.worker("--concurrency=1", settings=_signing(tour)), _published(tour)
    again = tour.broker.put(worker.queue, message)
    tour.events.ours.add(again)
    other = tour.broker.put(worker.queue, message, task="tasks.workflows.times")
    repeated, elsewhere = tour.fate(worker.queue, again), tour.fate(worker.queue, other)
    stored = tour.redis("GET", f"celery-task-meta-{again}").map(json.loads).value
    tour.redis("SET", f"celery-task-meta-{again}", json.dumps({**stored, "result": 1000}), "EX", KEPT_FOR)
    return {
        "published again, with another id": repeated,
        "to another task: 1 times 1": elsewhere,
        "a result, changed in Redis": tour.backend.result(app.AsyncResult(again)),
        "events read without a key": tour.events.wait("succeeded", of=[again]).map(len),
    }


@signed.step(
    "What it costs",
    shows=(signing.costs,),
    covers=("signing",),
    expect={
        "bytes that it adds": at_least(500),
        "CPU time, signing to encoding JSON": at_least(5, "times"),
        "CPU time, verifying to decoding JSON": at_least(2, "times"),
    },
    learn="Signing costs far more than encoding, verifying less. Sign where a client may only send what it has a key "
    "for; elsewhere a login at the broker is cheaper.",
)
def costs(tour: Tour) -> Evidence:
    queue = tour.queue()
    ratios = tour.printed("tour.tasks.signing", queue, queue=queue, settings=_signing(tour))
    basic.add.apply_async((1, 1), queue=queue)
    sizes = tour.broker.take_raw(queue, 2).map(lambda messages: [len(raw) for raw in messages])
    return {
        "bytes that it adds": sizes.map(lambda each: each[0] - each[1]),
        "CPU time, signing to encoding JSON": ratios.map(lambda lines: round(float(lines[0]))),
        "CPU time, verifying to decoding JSON": ratios.map(lambda lines: round(float(lines[1]))),
    }
