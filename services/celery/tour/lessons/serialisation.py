"""Serialisation."""

import pickle
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from celery_app import app
from tasks import basic
from tasks.notes import KEPT_FOR, key
from tour.evidence import Evidence, at_most, both, containing, error
from tour.lesson import Concept
from tour.tasks import practices
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
