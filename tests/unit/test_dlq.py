"""`make dlq`: lists, shows, requeues and drops dead letters."""

import json
import time
from typing import Any

import pytest
from redis import Redis

from celery_app import app
from delivery import dead_letters, dlq, outbox
from delivery.dead_letters import KEY, Reason
from settings import priority_lists, settings
from tasks import basic, ledger
from unit.redis_server import RedisServer


@pytest.fixture
def redis(client: Redis, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The broker and the outbox's Redis in one."""
    monkeypatch.setattr(outbox, "results_client", lambda: client)
    monkeypatch.setattr(dlq, "client", lambda: redis_server.client)
    return client


def dead(redis: Any, producer: Any, task: Any, *args: Any, reason: Reason, **options: Any) -> str:
    """A dead letter of a message that this publishes; its id."""
    task.apply_async(args, producer=producer, **options)
    name = next(name for name in priority_lists("low") if redis.llen(name))
    message = json.loads(redis.rpop(name))
    redis.delete(outbox.UNITS, outbox.DUE)
    message["headers"].update(retries=3, redelivered_at=1.0, unknown_since=1.0)
    message["properties"]["redelivered"] = True
    return bury(redis, json.dumps(message).encode(), reason)


def bury(redis: Any, payload: bytes, reason: Reason, queue: str = "low") -> str:
    fields = dead_letters.fields(reason, "because", queue, payload)
    return str(redis.execute_command("XADD", KEY, "*", *fields))


def test_half_a_character_is_no_reason_to_lose_a_letter(redis: Any, capsys: pytest.CaptureFixture[str]) -> None:
    payload = json.dumps({"headers": {"task": "\udc80", "id": "a\udc80"}}).encode()
    fields = dead_letters.fields(Reason.MALFORMED, "because \udc80", "low\udc80", payload)
    redis.execute_command("XADD", KEY, "*", *fields)
    assert dlq.main(["list"]) == 0
    assert r"\udc80[a\udc80]" in capsys.readouterr().out


def test_none(redis: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert dlq.main([]) == 0
    assert capsys.readouterr().out == "no dead letters\n"


def test_the_list_counts_by_reason_and_task(redis: Any, producer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        dead(redis, producer, basic.add, 1, 2, reason=Reason.RETRIES_EXHAUSTED)
    letter = bury(redis, b"\xff}{", Reason.MALFORMED)
    assert dlq.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split(maxsplit=1) == ["2", "retries exhausted  tasks.basic.add"]
    assert lines[1].split(maxsplit=1) == ["1", "malformed  (no task)"]
    assert any(line.startswith(letter) for line in lines)


def test_one_is_shown_whole(redis: Any, capsys: pytest.CaptureFixture[str]) -> None:
    letter = bury(redis, b"\xff}{", Reason.MALFORMED)
    assert dlq.main(["show", letter]) == 0
    said = capsys.readouterr().out
    for part in ("reason   malformed", "error    because", "queue    low", "payload  \\xff}{"):
        assert part in said


@pytest.mark.parametrize("choice", ["id", "task", "reason", "all"])
def test_requeue_gives_it_a_new_life(redis: Any, producer: Any, choice: str) -> None:
    letter = dead(redis, producer, basic.add, 1, 2, reason=Reason.TIME_LIMIT, priority=7, task_id="a")
    by = {"id": [letter], "task": ["--task", "tasks.basic.add"], "reason": ["--reason", "hard time limit"]}
    before = time.time()
    assert dlq.main(["requeue", *by.get(choice, ["--all"])]) == 0
    message = json.loads(redis.rpop(priority_lists("low")[7]))
    headers = message["headers"]
    assert (headers["id"], headers["retries"]) == ("a", 0)
    assert before <= headers["published_at"] <= time.time()
    assert not {"redelivered_at", "unknown_since"} & set(headers)
    assert redis.xlen(KEY) == 0


def test_a_requeued_message_is_read_as_any_other(redis: Any, producer: Any, redis_server: RedisServer) -> None:
    dead(redis, producer, basic.add, 1, 2, reason=Reason.TIME_LIMIT)
    dlq.main(["requeue", "--all"])
    with app.connection_for_read(redis_server.url) as connection:
        message = connection.default_channel.basic_get("low", no_ack=True)
    assert message.decode()[0] == [1, 2]


def test_a_requeued_unit_is_in_the_outbox_again(redis: Any, producer: Any) -> None:
    dead(redis, producer, ledger.apply, "u", reason=Reason.WORKER_LOST, task_id="u")
    assert dlq.main(["requeue", "--all"]) == 0
    unit = json.loads(redis.hget(outbox.UNITS, "u"))
    assert (unit["name"], unit["body"][0], unit["headers"]["retries"]) == ("tasks.ledger.apply", ["u"], 0)


@pytest.mark.parametrize(
    ("payload", "reason", "queue", "said"),
    [
        (b"}{", Reason.MALFORMED, "low", "it is malformed (because)"),
        (b"{}", Reason.REJECTED, "gone", "nobody consumes queue 'gone'"),
        (b" " * (settings.max_message_bytes + 1), Reason.TOO_LARGE, "low", "bytes; MAX_MESSAGE_BYTES is"),
    ],
    ids=["malformed", "queue", "too large"],
)
def test_what_cannot_go_back_stays_and_says_why(
    redis: Any, payload: bytes, reason: Reason, queue: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    letter = bury(redis, payload, reason, queue)
    assert dlq.main(["requeue", letter]) == 1
    assert f"left {letter}: " in (error := capsys.readouterr().err)
    assert said in error
    assert redis.xlen(KEY) == 1


def test_drop_takes_away_what_was_named_and_no_more(redis: Any, producer: Any) -> None:
    dead(redis, producer, basic.add, 1, 2, reason=Reason.TIME_LIMIT)
    bury(redis, b"}{", Reason.MALFORMED)
    assert dlq.main(["drop", "--reason", "malformed"]) == 0
    assert [letter.reason for letter in dlq.dead_letters(dlq.client())] == ["hard time limit"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["drop"], "drop: which? an ID, --task, --reason or --all"),
        (["requeue", "1-1", "--all"], "requeue: which?"),
        (["drop", "--reason", "old age"], "--reason: choose of 'malformed', 'larger than"),
    ],
)
def test_an_unclear_wish_is_refused(
    redis: Any, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        dlq.main(arguments)
    assert said in capsys.readouterr().err


def test_a_broker_that_is_away_is_named() -> None:
    with pytest.raises(SystemExit, match=r"dlq: the broker does not answer .*; `make up` starts it"):
        dlq.main([])


def test_an_unknown_id_is_refused(redis: Any) -> None:
    with pytest.raises(SystemExit, match="no such dead letter; `make dlq` lists them"):
        dlq.main(["drop", "1-1"])


def test_more_than_a_page(redis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dlq, "PAGE", 3)
    letters = [bury(redis, b"}{", Reason.MALFORMED) for _ in range(10)]
    assert [letter.id for letter in dlq.dead_letters(dlq.client())] == letters
