"""Serialisation."""

import pickle
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from celery_app import app
from tasks import basic
from tasks.notes import KEPT_FOR, key
from tour.lesson import Concept, Evidence, containing, matching
from tour.tasks import practices
from tour.tour import Tour

CONCEPT = Concept(
    "Serialisation",
    "serialisation",
    "A message is text that another process, another machine, another version of your code must understand.",
)

kinds = CONCEPT.lesson("json", "What JSON makes of arguments")


@kinds.step(
    "Some kinds arrive as they were, some as others, some not at all",
    shows=(basic.echo,),
    covers=("JSON", "what cannot travel"),
    expect={
        "a tuple arrives as": "list",
        "a datetime arrives as": "datetime",
        "a Decimal arrives as": "Decimal",
        "a UUID arrives as": "UUID",
        "{1: 'one'} arrives as": {"1": "one"},
        "a function": matching("EncodeError"),
    },
    learn="Lists, texts, numbers, dicts with text keys: send these; what else arrives is a courtesy of kombu's JSON.",
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
    return {
        **{
            f"{name} arrives as": tour.backend.result(promise).map(lambda r: r["kind"])
            for name, promise in sent.items()
        },
        "{1: 'one'} arrives as": tour.backend.result(keys).map(lambda r: r["value"]),
        "a function": tour.raised(lambda: basic.echo.delay(print)),
    }


refused = CONCEPT.lesson("no-pickle", "Why not pickle")


class Bomb:
    """Unpickling it calls whatever it says: here `print`, elsewhere `os.system`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("BOOM",)


@refused.step(
    "A pickled message is not even looked into",
    shows=(Bomb,),
    covers=("why not pickle",),
    expect={"the worker says": containing("Refusing to deserialize"), "printed by the bomb": 0, "next task": 2},
    learn="Who can write to the broker could run anything in every worker, were pickle accepted: "
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
        "the worker says": worker.log("Refusing to deserialize").map(lambda lines: lines[0]),
        "printed by the bomb": worker.log("ready|^BOOM").map(lambda lines: lines.count("BOOM")),
    }


ids = CONCEPT.lesson("ids", "Ids instead of objects")


@ids.step(
    "An object in a message is a copy of what was true when it was sent",
    shows=(practices.print_label, practices.print_label_of),
    covers=("ids instead of objects",),
    expect={"sent with the address": "to Old Street", "sent with the customer's id": "to New Street"},
    learn="Send what identifies a thing and let the task read it: it sees today's state, and the message stays small.",
)
def stale(tour: Tour) -> Evidence:
    customer = tour.name("customer")
    tour.redis("SET", key(customer), "Old Street", "EX", KEPT_FOR)
    copy = practices.print_label.apply_async(("Old Street",), countdown=0.5)
    reference = practices.print_label_of.apply_async((customer,), countdown=0.5)
    tour.redis("SET", key(customer), "New Street", "EX", KEPT_FOR)  # the customer moves while both wait
    return {
        "sent with the address": tour.backend.result(copy),
        "sent with the customer's id": tour.backend.result(reference),
    }
