"""The command `delayed` lists delayed messages, runs and cancels them, and gives them to stock workers."""

import argparse
import json
import time
from typing import Any

import pytest

from celery_durable import delayed

from .conftest import NewApp, NewProject
from .poll import poll_until

Said = pytest.CaptureFixture[str]


@pytest.fixture
def app(new_app: NewApp) -> Any:
    app = new_app(transport="atomic")

    def nothing() -> None:
        """A task."""

    for name in ("report", "other"):
        app.task(nothing, name=name, shared=False)
    return app


def run(app: Any, *arguments: str) -> int:
    parser = argparse.ArgumentParser()
    delayed.add_arguments(parser)
    return delayed.run(app, parser.parse_args(arguments))


def waiting(client: Any) -> list[Any]:
    return [json.loads(each)["headers"] for each in client.lrange("celery", 0, -1)]


def test_none(app: Any, capsys: Said) -> None:
    assert run(app) == 0
    assert "no delayed messages" in capsys.readouterr().out
    assert run(app, "run", "--all") == 1
    assert "no such message" in capsys.readouterr().err


def test_the_list_counts_by_queue_and_names_the_next_ones(app: Any, capsys: Said) -> None:
    for seconds in (300, 100, 200):
        app.tasks["report"].apply_async(task_id=f"in {seconds} s\x1b[2J", countdown=seconds)
    assert run(app) == 0
    said = capsys.readouterr().out
    assert "     3  celery\n" in said
    assert said.index("report[in 100 s") < said.index("report[in 200 s") < said.index("report[in 300 s")
    assert time.strftime("%Y-%m-%d", time.gmtime()) in said
    assert "\x1b" not in said


@pytest.mark.parametrize("choice", [("a",), ("--task", "report"), ("--all",)])
@pytest.mark.parametrize(("action", "said"), [("run", "due now"), ("give-up", "given up")])
def test_the_chosen_ones_wait_in_their_queue(
    app: Any, client: Any, capsys: Said, action: str, said: str, choice: tuple[str, ...]
) -> None:
    app.tasks["report"].apply_async(task_id="a", countdown=100)
    app.tasks["other"].apply_async(task_id="b", countdown=100)
    assert run(app, action, *choice) == 0
    expected = {"a", "b"} if choice == ("--all",) else {"a"}
    assert {headers["id"] for headers in waiting(client)} == expected
    assert {headers["eta"] is None for headers in waiting(client)} == {action == "run"}
    assert client.zcard("celery-durable:delayed:celery") == 2 - len(expected)
    assert f"{said} report[a]" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["run"], ["cancel", "a", "--all"], ["run", "--task", "x", "--all"]])
def test_ambiguous_arguments_are_refused(app: Any, arguments: list[str], capsys: Said) -> None:
    app.tasks["report"].apply_async(task_id="a", countdown=100)
    assert run(app, *arguments) == 2
    assert "give one of: an ID, --task, --all" in capsys.readouterr().err
    assert run(app, "run", "a") == 0


@pytest.mark.parametrize("transport", ["atomic", "stock"])
def test_what_killed_workers_held_is_given_up_too(new_app: NewApp, client: Any, capsys: Said, transport: str) -> None:
    app = new_app(transport=transport)
    message = {"headers": {"id": "a"}, "properties": {"delivery_info": {}, "priority": 0}}
    for number in range(12):
        value = json.dumps([{**message, "headers": {"id": f"{number}"}}, "", "celery"])
        client.hset("unacked", f"lease:x:{number:012}", value)
        client.zadd("unacked_index", {f"lease:x:{number:012}": 1})
    for tag, renewed in (("lease:y:000000000000", time.time()), ("of a stock worker", 1)):
        client.hset("unacked", tag, json.dumps([message, "", "celery"]))
        client.zadd("unacked_index", {tag: renewed})
    assert run(app, "give-up", "--all") == 0
    assert "12 messages that killed workers held" in capsys.readouterr().out
    assert [headers["id"] for headers in waiting(client)][::-1] == [f"{number}" for number in range(12)]
    assert set(client.hkeys("unacked")) == {"lease:y:000000000000", "of a stock worker"}
    assert run(app, "give-up", "--all") == 1


def test_an_unreachable_broker_is_named(new_app: NewApp, capsys: Said) -> None:
    app = new_app({"broker_url": "redis://127.0.0.1:1/0"}, transport="atomic")
    assert run(app) == 1
    assert "delayed: Redis does not answer" in capsys.readouterr().err


TASKS = """
@app.task(name="quick", shared=False, ignore_result=False)
def quick(name):
    note("ran", name)
"""


def test_what_runs_now_runs_and_what_is_cancelled_does_not(new_project: NewProject) -> None:
    project = new_project(TASKS, transport="atomic")
    project.worker("-c", "1")
    task = project.app.tasks["quick"]
    kept, cancelled = task.apply_async(("kept",), countdown=600), task.apply_async(("cancelled",), countdown=600)
    assert run(project.app, "cancel", cancelled.id) == 0
    assert run(project.app, "run", kept.id) == 0
    assert project.wait_noted("ran") == ["kept"]
    poll_until(lambda: cancelled.state == "REVOKED", "the state REVOKED")
    assert project.noted("ran") == ["kept"]
