"""The command `dlq` lists, shows, requeues and drops dead letters, also malformed ones."""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import pytest
from celery import chord, group, states
from kombu import Exchange, Queue
from kombu.utils.json import dumps

from celery_durable import dlq
from celery_durable.__main__ import main
from celery_durable.dead_letters import Letter, Reason, letter
from celery_durable.errors import DeadLetterDroppedError
from celery_durable.requeue import DeadLetterActions

from .conftest import NewApp
from .project import Project, run_message, run_python, run_task
from .redis_server import RedisServer


class Command:
    """The command, for an app with tasks `add` and, in the outbox, `apply`; makes dead letters."""

    def __init__(self, app: Any, client: Any) -> None:
        self.app, self.client = app, client
        self.durable = app.durable

        def add(*args: int) -> int:
            return sum(args)

        self.add = app.task(add, name="add", shared=False)
        self.apply = app.task(add, name="apply", shared=False, outbox=True)
        self.total = app.task(total, name="total", shared=False)
        app.finalize()

    def run(self, *arguments: str) -> int:
        parser = argparse.ArgumentParser()
        dlq.add_arguments(parser)
        return dlq.run(self.app, parser.parse_args(arguments))

    def take(self, queue: str = "celery") -> list[bytes]:
        """Take all messages out of a queue."""
        names = self.durable.priority_lists(queue)
        with self.durable.raw_broker() as client:
            payloads = [payload for name in names for payload in reversed(client.lrange(name, 0, -1))]
            client.delete(*names)
        return payloads

    def dead(self, payload: bytes, reason: Reason, queue: str = "celery") -> str:
        """Make a dead letter; returns its id."""
        with self.durable.raw_broker() as client:
            new = letter(reason, "because", queue, payload, self.durable.config.max_dead_letter_bytes)
            self.durable.dead_letters.add(client, new, self.app)
        return self.letters()[-1].id

    def letters(self) -> list[Letter]:
        with self.durable.raw_broker() as client:
            return list(self.durable.dead_letters.read(client))

    def dead_of(self, task: Any, *args: Any, reason: Reason = Reason.TIME_LIMIT, **options: Any) -> str:
        """Make a dead letter of a task that was retried and redelivered, and has expired."""
        task.apply_async(args, **options)
        (payload,) = self.take()
        message = json.loads(payload)
        message["headers"].update(retries=3, redelivered_at=1.0, redelivered=True, unknown_for=1.0, expires=LONG_AGO)
        return self.dead(dumps(message).encode(), reason)


LONG_AGO = "2020-01-01T00:00:00+00:00"


def total(numbers: list[int]) -> int:
    return sum(numbers)


@pytest.fixture
def command(app: Any, client: Any) -> Command:
    return Command(app, client)


Said = pytest.CaptureFixture[str]


# --- list and show ---


def test_none(command: Command, capsys: Said) -> None:
    assert command.run() == 0
    assert capsys.readouterr().out == "no dead letters\n"


def test_the_list_counts_by_reason_and_task(command: Command, capsys: Said) -> None:
    for _ in range(2):
        command.dead_of(command.add, 1, 2, reason=Reason.RETRIES_EXHAUSTED)
    odd = command.dead(b"\xff}{", Reason.MALFORMED)
    assert command.run("list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split(maxsplit=1) == ["2", "retries exhausted  add"]
    assert lines[1].split(maxsplit=1) == ["1", "malformed  (no task)"]
    assert any(line.startswith(odd) for line in lines)


def test_the_list_names_the_newest_and_counts_the_others(command: Command, capsys: Said) -> None:
    ids = [command.dead(b"}{", Reason.MALFORMED) for _ in range(dlq.LISTED + 3)]
    command.run()
    out = capsys.readouterr().out
    assert "… and 3 older ones" in out
    assert ids[2] not in out
    assert ids[3] in out
    assert ids[-1] in out


def test_the_list_says_what_has_overflowed(new_app: NewApp, client: Any, capsys: Said) -> None:
    command = Command(new_app(max_dead_letters=2), client)
    for _ in range(5):
        command.dead(b"}{", Reason.MALFORMED)
    command.run()
    assert "3 older ones were removed: a limit was exceeded (4 bytes now)" in capsys.readouterr().out


def test_one_is_shown_whole(command: Command, capsys: Said) -> None:
    odd = command.dead(b"\xff}{", Reason.MALFORMED)
    assert command.run("show", odd) == 0
    said = capsys.readouterr().out
    for part in ("reason   malformed", "error    because", "queue    celery", "payload  \\xff}{", "chord    none"):
        assert part in said


@pytest.mark.parametrize("compression", [None, "gzip", "zlib"])
def test_a_compressed_one_is_shown_and_requeued(command: Command, capsys: Said, compression: str | None) -> None:
    one = command.dead_of(command.apply, 1, 2, compression=compression, task_id="a")
    assert command.run("list") == command.run("show", one) == 0
    assert command.run("requeue", one) == 0
    (payload,) = command.take()
    with command.app.connection_for_read() as connection:
        message = connection.default_channel.Message(json.loads(payload), channel=connection.default_channel)
        assert message.decode()[0] == [1, 2]
    entry = json.loads(command.client.hget(command.durable.outbox.key, "a"))
    assert entry["body"][0] == [1, 2]


EVIL, SHOWN = "a\x1b[31mb\nCRITICAL forged", "a\\x1b[31mb\\nCRITICAL forged"


def test_no_part_of_a_message_forges_a_line_of_the_output(
    command: Command, client: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    payload = json.dumps({"headers": {"task": EVIL, "id": EVIL}}).encode()
    with command.durable.raw_broker() as broker:
        for reason, end in ((Reason.REJECTED, b""), (Reason.MALFORMED, b"\n\x1b")):
            new = letter(reason, EVIL, EVIL, payload + end, 10_000)
            command.durable.dead_letters.add(broker, new, command.app)
    for arguments in (["list"], ["show", "--all"], ["requeue", "--all"], ["drop", "--all"]):
        command.run(*arguments)
    output = "".join(capsys.readouterr())
    assert "\x1b" not in output
    assert [line for line in output.splitlines() if line.startswith("CRITICAL")] == []
    for part in (f"1  rejected by its task  {SHOWN}", f"{SHOWN}[{SHOWN}]", f"queue    {SHOWN}", f"error    {SHOWN}"):
        assert part in output
    assert "}\\n\\x1b" in output, "of the payload"


# --- requeue ---


@pytest.mark.parametrize("choice", ["id", "task", "reason", "all"])
def test_requeue_resets_retries_and_expiry(command: Command, choice: str) -> None:
    one = command.dead_of(command.add, 1, 2, priority=7, task_id="a", headers={"mine": 1})
    by = {"id": [one], "task": ["--task", "add"], "reason": ["--reason", "hard time limit"]}
    before = time.time()
    assert command.run("requeue", *by.get(choice, ["--all"])) == 0
    message = json.loads(command.client.rpop("celery\x06\x166"))
    headers = message["headers"]
    assert (headers["id"], headers["retries"], headers["mine"]) == ("a", 0, 1)
    assert before <= headers["published_at"] <= time.time()
    assert not {"redelivered_at", "redelivered", "unknown_for", "expires"} & set(headers)
    assert command.letters() == []
    assert command.durable.dead_letters.count(command.client)[1] == 0


def test_a_requeued_message_runs(command: Command) -> None:
    command.dead_of(command.add, 1, 2, task_id="a")
    command.run("requeue", "--all")
    (payload,) = command.take()
    assert run_task(command.add, json.loads(payload)["headers"], 1, 2) == "SUCCESS"
    assert command.add.AsyncResult("a").get(timeout=10) == 3


def test_a_requeued_task_of_the_outbox_is_in_it_again_and_ends(command: Command) -> None:
    command.dead_of(command.apply, 1, reason=Reason.WORKER_LOST, task_id="a")
    assert not command.client.hexists(command.durable.outbox.key, "a"), "its message is dead"
    assert command.run("requeue", "--all") == 0
    entry = json.loads(command.client.hget(command.durable.outbox.key, "a"))
    assert (entry["name"], entry["body"][0], entry["headers"]["retries"]) == ("apply", [1], 0)
    (payload,) = command.take()
    assert run_task(command.apply, json.loads(payload)["headers"], 1) == "SUCCESS"
    assert not command.client.hexists(command.durable.outbox.key, "a")


def test_one_that_two_processes_requeue_runs_once(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    command.dead_of(command.apply, 1, task_id="a")
    (old,) = command.letters()
    requeuer = DeadLetterActions(command.durable)
    with command.durable.raw_broker() as client:
        assert requeuer.requeue(client, old)
        assert not requeuer.requeue(client, old)
    assert [json.loads(payload)["headers"]["id"] for payload in command.take()] == ["a"]


def test_it_goes_back_to_its_queue_only(new_app: NewApp, client: Any) -> None:
    """The routing key of a topic matches both queues, and the queue's name is not a routing key."""
    events = Exchange("events", "topic")
    queues = [Queue("one", events, routing_key="a.#"), Queue("two", events, routing_key="#"), Queue("celery")]
    command = Command(new_app({"task_queues": queues}), client)
    command.apply.apply_async((1,), task_id="a", queue="one", routing_key="a.b")
    command.take("two")
    (payload,) = command.take("one")
    command.dead(payload, Reason.TIME_LIMIT, "one")
    assert command.run("requeue", "--all") == 0
    assert (len(command.take("one")), len(command.take("two"))) == (1, 0)
    entry = json.loads(client.hget(command.durable.outbox.key, "a"))
    client.hset(command.durable.outbox.key, "a", json.dumps({**entry, "published": 0}))
    client.zadd(command.durable.outbox.due_key, {"a": 0})
    command.durable.reconcile()
    assert (len(command.take("one")), len(command.take("two"))) == (1, 0), "the same when it is published again"


@pytest.mark.parametrize(
    ("payload", "reason", "queue", "said"),
    [
        (b"}{", Reason.MALFORMED, "celery", "it is malformed (because)"),
        (b"{}", Reason.REJECTED, "celery", "it cannot be read (KeyError: 'headers')"),
        (b"[]", Reason.REJECTED, "celery", "it cannot be read (TypeError"),
        (b'{"headers": {}, "properties": []}', Reason.REJECTED, "celery", "it cannot be read (TypeError"),
        (b"{}", Reason.REJECTED, "gone", "the app has no queue 'gone'"),
        (b"x" * 30_001, Reason.TOO_LARGE, "celery", "it has 30001 bytes; max_message_bytes is 30000"),
        (
            b'{"headers": {"task": "apply"}, "properties": {"delivery_tag": "a"}, "body": "}{"}',
            Reason.REJECTED,
            "celery",
            "its body cannot be read (",
        ),
    ],
    ids=["malformed", "no headers", "list", "odd properties", "queue", "too large", "body"],
)
def test_what_cannot_go_back_stays_and_says_why(
    new_app: NewApp, client: Any, payload: bytes, reason: Reason, queue: str, said: str, capsys: Said
) -> None:
    command = Command(new_app(max_message_bytes=30_000), client)
    one = command.dead(payload, reason, queue)
    assert command.run("requeue", one) == 1
    error = capsys.readouterr().err
    assert f"left {one}: {said}" in error
    assert "show prints it, drop removes it" in error
    assert [found.id for found in command.letters()] == [one]
    assert command.run("drop", one) == 0


ODD_ENTRIES: list[dict[Any, Any]] = [
    {"note": "of somebody else"},
    {"payload": b"\xff\x00", "task": b"\xff"},
    {"reason": "hard time limit", "queue": "celery", "payload": "7", "size": "1"},
    {"reason": "hard time limit", "queue": "celery", "payload": '{"headers": {"id": "foreign"}}'},
    {"reason": "unknown task", "queue": "celery", "payload": '{"headers": null, "properties": {"body_encoding": 1}}'},
]


def test_one_odd_entry_does_not_block_the_others(command: Command, capsys: Said) -> None:
    """In an earlier version the command ended at the first letter that could not be requeued."""
    command.dead_of(command.add, 1, task_id="before")
    for fields in ODD_ENTRIES:
        command.client.xadd(command.durable.dead_letters.key, fields)
    command.dead_of(command.apply, 1, task_id="after", compression="gzip")
    assert command.run("list") == command.run("show", "--all") == 0
    assert command.run("requeue", "--all") == 1
    assert [json.loads(payload)["headers"]["id"] for payload in command.take()] == ["before", "after"]
    assert len(command.letters()) == len(ODD_ENTRIES)
    assert capsys.readouterr().err.count("left ") == len(ODD_ENTRIES)
    assert command.run("drop", "--all") == 0
    assert command.letters() == []


def test_a_message_dead_lettered_again_is_not_requeued_again(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker may reject it again before the command has read the whole stream."""
    requeue, requeued = DeadLetterActions.requeue, []

    def fail_again(self: Any, client: Any, old: Letter) -> bool:
        requeued.append(old.id)
        assert len(requeued) < 10, "endless loop"
        time.sleep(0.002)
        command.dead(old.payload, Reason.REJECTED)
        return requeue(self, client, old)

    for _ in range(2):
        command.dead_of(command.add, 1)
    time.sleep(0.002)
    monkeypatch.setattr(DeadLetterActions, "requeue", fail_again)
    assert command.run("requeue", "--all") == 0
    assert len(requeued) == len(command.letters()) == 2


# --- drop ---


def test_drop_removes_only_the_named_letters(command: Command) -> None:
    command.dead_of(command.add, 1, 2)
    command.dead(b"}{", Reason.MALFORMED)
    assert command.run("drop", "--reason", "malformed") == 0
    assert [found.reason for found in command.letters()] == ["hard time limit"]


# --- Chords ---


def chord_with_a_dead_member(command: Command, reason: Reason) -> Any:
    """A chord of two whose second member is a dead letter; returns the callback's result."""
    result = chord(group(command.add.s(1), command.add.s(2)), command.total.s(), app=command.app).apply_async()
    first, second = command.take()
    headers = json.loads(first)["headers"]
    run_message(command.app, first)
    assert headers["group"]
    command.dead(second, reason)
    return result


@pytest.mark.parametrize("reason", [Reason.UNKNOWN_TASK, Reason.MALFORMED, Reason.TOO_LARGE])
def test_the_chord_of_a_dead_letter_is_shown(command: Command, capsys: Said, reason: Reason) -> None:
    chord_with_a_dead_member(command, reason)
    command.run("list")
    command.run("show", "--all")
    out = capsys.readouterr().out
    assert "in a chord: total, group " in out
    assert "chord    total, group " in out


def test_requeue_completes_a_chord(command: Command) -> None:
    result = chord_with_a_dead_member(command, Reason.UNKNOWN_TASK)
    assert command.take() == []
    assert command.run("requeue", "--all") == 0
    (member,) = command.take()
    run_message(command.app, member)
    (callback,) = command.take()
    run_message(command.app, callback)
    assert result.get(timeout=10) == 3


@pytest.mark.parametrize("reason", [Reason.UNKNOWN_TASK, Reason.TOO_LARGE])
def test_drop_fails_a_chord(command: Command, reason: Reason) -> None:
    result = chord_with_a_dead_member(command, reason)
    assert result.state == states.PENDING
    assert command.run("drop", "--all") == 0
    assert result.state == states.FAILURE
    with pytest.raises(Exception, match=f"DeadLetterDroppedError.*{reason}"):
        result.get(timeout=10)
    assert command.take() == []


def test_a_chord_that_has_failed_already_is_not_failed_again(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Celery has failed it: its member was rejected, hit its time limit, or lost its process."""
    chord_with_a_dead_member(command, Reason.REJECTED)
    parts: list[Any] = []
    monkeypatch.setattr(command.app.backend, "on_chord_part_return", lambda *args: parts.append(args))
    assert command.run("drop", "--all") == 0
    assert parts == []
    assert issubclass(DeadLetterDroppedError, Exception)


# --- Arguments ---


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["drop"], "drop: give one of: an ID, --task, --reason, --all"),
        (["show"], "show: give one of"),
        (["requeue", "1-1", "--all"], "requeue: give one of"),
        (["requeue", "--task", "a", "--reason", "malformed"], "requeue: give one of"),
        (["drop", "--reason", "old age"], "--reason: choose from 'malformed', 'larger than"),
    ],
)
def test_ambiguous_arguments_are_refused(command: Command, arguments: list[str], said: str, capsys: Said) -> None:
    assert command.run(*arguments) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["1-1", "nonsense", "-", "+", "(1-1", "99999999999999999999999-1"])
@pytest.mark.parametrize("action", ["drop", "show", "requeue"])
def test_an_id_that_is_not_there_is_refused(command: Command, wrong: str, action: str, capsys: Said) -> None:
    command.dead(b"}{", Reason.MALFORMED)
    assert command.run(action, "--", wrong) == 1
    assert capsys.readouterr().err == "dlq: no such dead letter; see list\n"
    assert len(command.letters()) == 1


def test_an_unreachable_broker_is_named(new_app: NewApp, client: Any, capsys: Said) -> None:
    command = Command(new_app({"broker_url": "redis://127.0.0.1:1/0"}), client)
    assert command.run() == 1
    said = capsys.readouterr().err
    assert said.startswith("dlq: Redis does not answer (Error 111 connecting to 127.0.0.1:1")
    assert said.endswith("is it up?\n")


# --- python -m celery_durable ---


@pytest.fixture
def folder(tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    Project(tmp_path, redis_server.url, "")
    (tmp_path / "bare.py").write_text("from celery import Celery\napp = Celery('bare')\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_finds_the_app(folder: Path, command: Command) -> None:
    command.dead(b"}{", Reason.MALFORMED)
    program = (
        f"import os, runpy, sys; os.chdir({str(folder)!r}); sys.argv = ['', *sys.argv[1:]]; "
        "runpy.run_module('celery_durable', run_name='__main__')"
    )
    done = run_python(program, "-A", "project", "dlq")
    assert (done.returncode, done.stderr) == (0, "")
    assert "1  malformed  (no task)" in done.stdout
    done = run_python(program, "dlq", "drop", "--all", CELERY_APP="project")
    assert done.returncode == 0
    assert done.stdout.startswith("dropped ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["dlq"], "no app given: use -A MODULE, or set CELERY_APP"),
        (["-A", "no_such_module", "dlq"], "-A no_such_module: "),
        (["-A", "bare", "dlq"], "-A bare: celery_durable.install was not called for this app"),
        (["-A", "project"], "the following arguments are required: command"),
    ],
)
def test_an_object_that_is_not_an_app_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str, capsys: Said
) -> None:
    monkeypatch.delenv("CELERY_APP", raising=False)
    monkeypatch.syspath_prepend(str(folder))
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert said in capsys.readouterr().err
