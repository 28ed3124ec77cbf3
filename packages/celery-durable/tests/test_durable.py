"""What the app knows of its workers, and for how long."""

import json
import time
from typing import Any

import pytest

from celery_durable.periodic import RECONCILE

from .conftest import NewApp

KEY = "celery-durable:workers"


def register(client: Any, node: str, age: float) -> None:
    client.hset(KEY, node, json.dumps({"queues": ["celery"], "heartbeat": time.time() - age}))


def test_registered_workers_by_node_name(app: Any, client: Any) -> None:
    register(client, "one@host", age=1)
    assert app.durable.workers()["one@host"]["queues"] == ["celery"]


@pytest.mark.parametrize("text", ["no JSON", "5", '"text"', "[[1, 2]]", "{}", '{"heartbeat": "now"}'])
def test_an_entry_of_another_program_is_left_alone(text: str, app: Any, client: Any) -> None:
    """Beat's reconcile would end at it each time, and publish nothing again."""
    client.hset(KEY, "odd", text)
    register(client, "one@host", age=1)
    assert list(app.durable.workers()) == ["one@host"]
    assert app.durable.reconcile()["published"] == 0
    assert client.hget(KEY, "odd") == text


def test_reconcile_forgets_workers_that_were_killed_long_ago(new_app: NewApp, client: Any) -> None:
    """A stopped one removes its entry itself; a replica that was killed does not come back under its name."""
    app = new_app(registration_kept=100)
    register(client, "killed@yesterday", age=101)
    register(client, "killed@just-now", age=50)
    app.tasks[RECONCILE].run()
    assert set(client.hkeys(KEY)) == {"killed@just-now"}
