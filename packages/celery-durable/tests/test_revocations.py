"""Revocations are stored, so that workers which start later know them, whichever process revoked."""

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from celery.worker import control, state
from redis import RedisError

from celery_durable.worker import Revocations as Step

from .conftest import NewApp, NewProject
from .poll import poll_until
from .redis_server import RedisServer


@pytest.fixture(autouse=True)
def clean_state() -> Iterator[None]:
    commands = dict(control.Panel.data)
    state.reset_state()
    yield
    state.reset_state()
    control.Panel.data.update(commands)


def known() -> tuple[set[str], dict[str, list[Any]]]:
    """The revoked ids and stamps in this process' worker state."""
    return set(state.revoked), dict(state.revoked_stamps)


# --- Stored revocations ---


def test_an_id_is_loaded(app: Any) -> None:
    app.control.revoke("a")
    app.control.revoke(["b", "c"], terminate=True)
    app.AsyncResult("d").revoke()
    app.durable.revocations.load()
    assert known() == ({"a", "b", "c", "d"}, {})


@pytest.mark.parametrize(
    "headers", [{"run": "7", "tenant": ["x", "y"]}, ["run=7", "tenant=x", "tenant=y"]], ids=["dict", "list"]
)
def test_a_stamp_is_loaded(app: Any, headers: Any) -> None:
    app.control.revoke_by_stamped_headers(headers)
    for _ in range(2):
        app.durable.revocations.load()
    _, stamps = known()
    assert {name: sorted(values) for name, values in stamps.items()} == {"run": ["7"], "tenant": ["x", "y"]}


def test_a_stamp_that_celery_knows_as_one_value_is_added_to(app: Any) -> None:
    state.revoked_stamps["run"] = "6"
    app.control.revoke_by_stamped_headers({"run": "7"})
    app.durable.revocations.load()
    assert sorted(state.revoked_stamps["run"]) == ["6", "7"]


@pytest.mark.parametrize("command", ["ping", "rate_limit", "shutdown"])
def test_other_commands_are_not_recorded(app: Any, client: Any, command: str) -> None:
    app.control.broadcast(command, arguments={"task_id": "a", "headers": {"a": "b"}})
    assert not client.exists("celery-durable:revoked")


def test_a_revocation_without_ids_records_nothing(app: Any, client: Any) -> None:
    app.control.revoke([])
    app.control.revoke_by_stamped_headers({})
    assert not client.exists("celery-durable:revoked")


def test_they_are_forgotten_after_a_while(new_app: NewApp, client: Any) -> None:
    app = new_app(revoked_for=1000)
    app.control.revoke("old")
    assert client.zscore("celery-durable:revoked", "id:old") == pytest.approx(time.time() + 1000, abs=10)
    client.zadd("celery-durable:revoked", {"id:old": time.time() - 1})
    app.durable.revocations.load()
    assert known()[0] == set(), "also before it is removed"
    app.control.revoke("new")
    assert client.zrange("celery-durable:revoked", 0, -1) == ["id:new"]


def test_they_are_not_forgotten_while_delayed_messages_wait(new_app: NewApp, client: Any) -> None:
    """By the store, and by a worker: another one that starts has it forget the old ones."""
    app = new_app(revoked_for=1000)
    due = time.time() + 5000
    client.zadd("celery-durable:delayed:celery", {"later": due, "soon": time.time() + 10})
    control.Panel.data["revoke"] = lambda state, *args, **kwargs: state.revoked.add(args[0])
    Step(type("Worker", (), {"app": app}))
    app.durable.revocations.load()  # as each worker does at its start
    control.Panel.data["revoke"](state, "a")
    assert client.zscore("celery-durable:revoked", "id:a") == pytest.approx(due + 1000, abs=1)
    for known_by in ("receiver", "loader"):
        state.revoked.purge(now=time.monotonic() + 5990)
        assert "a" in state.revoked, known_by
        state.revoked.purge(now=time.monotonic() + 6010)
        assert "a" not in state.revoked, known_by
        app.durable.revocations.load()


def test_of_too_many_the_oldest_are_forgotten(new_app: NewApp, client: Any) -> None:
    app = new_app(max_revoked=3)
    for number in range(5):
        app.control.revoke(f"{number}")
    assert client.zrange("celery-durable:revoked", 0, -1) == ["id:2", "id:3", "id:4"]


def test_a_worker_remembers_for_as_long_and_as_many(new_app: NewApp) -> None:
    """Celery forgets a revocation after three hours, even if its message waits for four."""
    app = new_app(revoked_for=50_000, max_revoked=60_000)
    app.durable.revocations.load()
    assert (state.revoked.expires, state.revoked.maxlen) == (50_000, 60_000)


def test_what_cannot_be_remembered_is_not_revoked(new_app: NewApp) -> None:
    app = new_app({"broker_url": "redis://127.0.0.1:1/0"})
    with pytest.raises(RedisError):
        app.control.revoke("a")


def test_without_redis_a_worker_keeps_its_revocations(
    app: Any, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    state.revoked.add("a")
    with redis_server.stopped():
        app.durable.revocations.load()
    assert known()[0] == {"a"}
    assert "revoked tasks not read: " in caplog.text


def test_a_worker_records_the_revocations_that_it_receives(app: Any, client: Any) -> None:
    """From a sender without the library, with positional or keyword arguments."""
    received: list[Any] = []

    def revoke(state: Any, *args: Any, **kwargs: Any) -> dict[str, int]:
        received.append((args, kwargs))
        return {"ok": 1}

    control.Panel.data["revoke"] = control.Panel.data["revoke_by_stamped_headers"] = revoke
    Step(type("Worker", (), {"app": app}))
    assert control.Panel.data["revoke"](None, "a", terminate=True) == {"ok": 1}
    control.Panel.data["revoke"](None, task_id=["b", "c"])
    control.Panel.data["revoke_by_stamped_headers"](None, headers={"run": ["7"]})
    assert received == [(("a",), {"terminate": True}), ((), {"task_id": ["b", "c"]}), ((), {"headers": {"run": ["7"]}})]
    assert set(client.zrange("celery-durable:revoked", 0, -1)) == {"id:a", "id:b", "id:c", 'stamp:["run", "7"]'}


def test_a_worker_revokes_even_if_it_cannot_record_it(
    app: Any, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    control.Panel.data["revoke"] = lambda state, *args, **kwargs: "revoked"
    Step(type("Worker", (), {"app": app}))
    with redis_server.stopped():
        assert control.Panel.data["revoke"](None, "a") == "revoked"
    assert "revoke not stored, it is lost when this worker stops" in caplog.text


# --- Workers that start later ---

TASKS = """
@app.task(name="task", bind=True, shared=False)
def task(self):
    note("ran", self.request.id)


@app.task(name="in_outbox", bind=True, shared=False, outbox=True)
def in_outbox(self):
    note("ran", self.request.id)
"""


@pytest.mark.parametrize("transport", ["stock", "atomic"])
def test_a_revoked_task_does_not_run_on_a_worker_that_starts_later(new_project: NewProject, transport: str) -> None:
    """They wait for their ETA: one worker holds them and stops, or they are in Redis. Revoked by ours, by a sender
    without the library, and while no worker ran."""
    project = new_project(TASKS, transport=transport)
    app, stock = project.app, project.stock_app
    for task_id in ("ours", "stock's", "while no worker runs", "not revoked"):
        stock.send_task("task", task_id=task_id, countdown=5)
    for task_id, run in (("stamped ours", "1"), ("stamped stock's", "2"), ("stamped, not revoked", "3")):
        app.tasks["task"].apply_async(task_id=task_id, countdown=5, run=run, stamped_headers=["run"])
    app.tasks["in_outbox"].apply_async(task_id="in the outbox", countdown=5)
    worker = project.worker("-c", "1", name="first")
    count = partial(project.client.hlen, "unacked")
    if transport == "atomic":
        count = partial(project.client.zcard, app.durable.delayed_key("celery"))
    poll_until(lambda: count() == 8, "all to wait for their ETA")
    app.control.revoke("ours")
    app.control.revoke("in the outbox")
    app.control.revoke_by_stamped_headers({"run": "1"})
    stock.control.revoke("stock's")
    stock.control.revoke_by_stamped_headers({"run": "2"})
    poll_until(lambda: int(project.client.zcard("celery-durable:revoked")) == 5, "all to be remembered")
    assert worker.stop() == 0
    app.control.revoke("while no worker runs")
    second = project.worker("-c", "1", "--without-mingle", name="second")
    project.wait_noted("ran", 2)
    places = ("celery", "unacked", app.durable.delayed_key("celery"))
    poll_until(lambda: not project.client.exists(*places), "all to be done")
    assert sorted(project.noted("ran")) == ["not revoked", "stamped, not revoked"]
    assert second.log.count("Discarding revoked task") == 6
    assert app.AsyncResult("ours").state == "REVOKED"
    assert not project.client.exists("celery-durable:outbox"), "it is not published again"
