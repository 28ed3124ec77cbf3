"""The stream of dead letters: bounded, counted, and readable whatever entries it has."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from celery_durable.config import MIB
from celery_durable.dead_letters import PAGE_BYTES, START, DeadLetters, Letter, Reason, headers_of, letter
from celery_durable.signals import dead_letter_overflowed, message_dead_lettered

from .conftest import NewApp
from .redis_server import RedisServer


class Stream:
    """An app's dead letters, and a client that decodes nothing."""

    def __init__(self, app: Any, client: Any) -> None:
        self.app, self.client, self.letters = app, client, app.durable.dead_letters

    def add(self, payload: bytes, reason: Reason = Reason.MALFORMED, queue: str = "q") -> Letter:
        new = letter(reason, "because", queue, payload, self.app.durable.config.max_dead_letter_bytes)
        assert self.letters.add(self.client, new, self.app)
        return new

    def all(self) -> list[Letter]:
        return list(self.letters.read(self.client))

    def check(self) -> tuple[int, int, int]:
        """The number of letters, their bytes, and the number of overflowed ones; checks them against the stream."""
        count, size, overflowed = self.letters.count(self.client)
        found = self.all()
        assert (count, size) == (len(found), sum(len(each.payload) for each in found))
        return count, size, overflowed


@pytest.fixture
def stream(app: Any, redis_server: RedisServer) -> Stream:
    return Stream(app, redis_server.client)


@pytest.fixture
def bounded(new_app: NewApp, redis_server: RedisServer) -> Stream:
    app = new_app(max_dead_letters=5, max_dead_letter_bytes=1000, max_message_bytes=1000)
    return Stream(app, redis_server.client)


@pytest.fixture
def announced() -> Iterator[list[Any]]:
    said: list[Any] = []

    def dead(letter: Letter, **_: Any) -> None:
        said.append(("dead", letter.task_id))

    def gone(task_id: str, reason: str, **_: Any) -> None:
        said.append(("gone", task_id, reason))

    message_dead_lettered.connect(dead)
    dead_letter_overflowed.connect(gone)
    yield said
    message_dead_lettered.disconnect(dead)
    dead_letter_overflowed.disconnect(gone)


def payload(task_id: str, size: int = 0) -> bytes:
    text = json.dumps({"headers": {"task": "t", "id": task_id}, "body": ""})
    return text.replace('""', f'"{"x" * max(0, size - len(text))}"').encode()


# --- What is kept ---


@pytest.mark.parametrize(
    ("message", "task", "task_id"),
    [
        (b"\xff}{", "", ""),
        (b"[]", "", ""),
        (b'{"headers": []}', "", ""),
        (b'{"headers": {"task": 7, "id": {}}}', "7", ""),
        (b'{"headers": {"task": "t", "id": "i"}}', "t", "i"),
        (json.dumps({"headers": {"task": "\udc80", "id": "a\udc80"}}).encode(), r"\udc80", r"a\udc80"),
        (json.dumps({"headers": {"task": "t" * 300, "id": "i" * 300}}).encode(), "t" * 255, "i" * 255),
        (b"[" * 100_000, "", ""),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_message_is_kept_byte_for_byte_whatever_it_is(
    stream: Stream, message: bytes, task: str, task_id: str
) -> None:
    stream.add(message)
    (found,) = stream.all()
    assert (found.payload, found.size, found.whole) == (message, len(message), True)
    assert (found.reason, found.error, found.queue) == ("malformed", "because", "q")
    assert (found.task, found.task_id) == (task, task_id)
    assert found.time.timestamp() == pytest.approx(int(found.id.split("-")[0]) / 1000)


def test_a_cut_character_loses_no_dead_letter(stream: Stream) -> None:
    new = letter(Reason.MALFORMED, "because \udc80", "q\udc80", b"}{", MIB)
    assert stream.letters.add(stream.client, new, stream.app)
    (found,) = stream.all()
    assert (found.error, found.queue) == (r"because \udc80", r"q\udc80")


def test_the_start_of_a_letter_larger_than_the_bound_is_kept(new_app: NewApp, redis_server: RedisServer) -> None:
    app = new_app(max_dead_letter_bytes=100_000, max_message_bytes=100_000)
    stream = Stream(app, redis_server.client)
    stream.add(b"x" * 100_001)
    (found,) = stream.all()
    assert (len(found.payload), found.size, found.whole) == (START, 100_001, False)
    assert stream.check() == (1, START, 0)


# --- Bounds ---


def test_too_many_letters_remove_the_oldest_and_are_logged(
    bounded: Stream, announced: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(7):
        bounded.add(payload(f"{number}"))
    assert [found.task_id for found in bounded.all()] == ["2", "3", "4", "5", "6"]
    assert bounded.check()[2] == 2
    gone = [said for said in announced if said[0] == "gone"]
    assert gone == [("gone", "0", "malformed"), ("gone", "1", "malformed")]
    for number in range(2):
        said = f"dead letters: too many or too large, the oldest was removed: malformed; t[{number}]"
        assert said in caplog.text


def test_too_large_letters_remove_the_oldest(bounded: Stream) -> None:
    for number in range(3):
        bounded.add(payload(f"{number}", 300))
    assert len(bounded.all()) == 3
    bounded.add(payload("large", 900))
    assert [found.task_id for found in bounded.all()] == ["large"]
    assert bounded.check() == (1, 900, 3)


def test_letters_that_are_too_large_for_a_smaller_bound_go_at_once(
    bounded: Stream, new_app: NewApp, redis_server: RedisServer
) -> None:
    before = Stream(new_app(max_dead_letters=1000), redis_server.client)
    for number in range(400):
        before.add(payload(f"{number}"))
    bounded.add(payload("new"))
    assert bounded.check()[0] == 5
    assert bounded.check()[2] == 396


def test_a_full_broker_still_takes_a_dead_letter(stream: Stream, redis_server: RedisServer) -> None:
    redis_server.client.set("fill", "x" * 100_000)
    redis_server.client.config_set("maxmemory", 1)
    stream.add(payload("a", 1000))
    assert [found.task_id for found in stream.all()] == ["a"]
    redis_server.client.config_set("maxmemory", 0)
    assert stream.check() == (1, 1000, 0)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(40, 1500)),
        st.tuples(st.sampled_from(["take", "requeue", "take twice"]), st.integers(0, 4)),
        st.tuples(st.sampled_from(["foreign", "foreign without payload", "all gone"]), st.just(0)),
    ),
    max_size=25,
)


@given(steps=STEPS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_count_of_bytes_stays_true(
    bounded: Stream, redis_server: RedisServer, steps: list[tuple[str, int]]
) -> None:
    redis_server.client.flushall()
    letters: DeadLetters = bounded.letters
    for step, number in steps:
        found = bounded.all()
        if step == "add":
            bounded.add(payload("a", number))
        elif step == "foreign":
            bounded.client.xadd(letters.key, {"payload": "of somebody else"})
            bounded.client.hincrby(letters.stats_key, "bytes", len("of somebody else"))
        elif step == "foreign without payload":
            bounded.client.xadd(letters.key, {"note": "hello"})
        elif step == "all gone":
            bounded.client.delete(letters.key)
            bounded.client.hdel(letters.stats_key, "bytes")
        elif number < len(found):
            into = ("list", b"message") if step == "requeue" else ()
            assert letters.take(bounded.client, found[number], *into)
            if step == "take twice":
                assert not letters.take(bounded.client, found[number], *into)
        count, size, _ = bounded.check()
        assert step != "add" or (count <= 5 and (size <= 1000 or count == 1))


def test_the_counts_of_an_emptied_stream_start_again(bounded: Stream) -> None:
    bounded.add(payload("a", 900))
    bounded.client.delete(bounded.letters.key)
    bounded.add(payload("b", 300))
    assert bounded.check() == (1, 300, 0)


# --- Reading ---


def test_more_than_a_page(stream: Stream) -> None:
    for number in range(1200):
        stream.client.xadd(stream.letters.key, {"id": f"{number}"})
    assert [found.task_id for found in stream.all()] == [f"{number}" for number in range(1200)]


def test_a_page_is_bounded_by_bytes(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    """Including large letters after many small ones."""
    for number in range(600):
        stream.client.xadd(stream.letters.key, {"id": f"{number}", "payload": "x"})
    for number in range(40):
        stream.client.xadd(stream.letters.key, {"id": f"large {number}", "payload": "x" * MIB})
    pages: list[int] = []
    execute = type(stream.client).execute_command

    def watched(client: Any, *args: Any, **options: Any) -> Any:
        reply = execute(client, *args, **options)
        pages.append(len(repr(reply)))
        return reply

    monkeypatch.setattr(type(stream.client), "execute_command", watched)
    assert len(stream.all()) == 640
    assert max(pages) < PAGE_BYTES + 1.1 * MIB
    assert len(pages) < 10, "not in pages of one"


def test_between_two_ids(stream: Stream) -> None:
    for number in range(3):
        stream.add(payload(f"{number}"))
    first, second, third = stream.all()
    assert list(stream.letters.read(stream.client, second.id, second.id)) == [second]
    assert list(stream.letters.read(stream.client, second.id)) == [second, third]
    assert list(stream.letters.read(stream.client, "-", first.id)) == [first]


@pytest.mark.parametrize(
    "fields",
    [
        {"note": "hello"},
        {b"reason": b"\xff", b"queue": b"\xfe", b"payload": b"\xff\x00", b"size": b"many"},
        {"size": "-3", "payload": "abc"},
        {"size": "٣", "payload": "abc"},
        {"size": "9" * 5000, "payload": "abc"},
    ],
    ids=lambda fields: "-".join(str(name) for name in fields),
)
def test_what_somebody_else_has_written_is_read_as_far_as_it_goes(stream: Stream, fields: dict[Any, Any]) -> None:
    stream.client.xadd(stream.letters.key, fields)
    stream.add(payload("a"))
    foreign, ours = stream.all()
    assert ours.task_id == "a"
    assert foreign.payload in (b"", b"abc", b"\xff\x00")


@pytest.mark.parametrize("text", [b"", b"}{", b"7", b"[]", b"null", b'{"headers": 7}', b"[" * 100_000, b"\xff"])
def test_headers_of_what_has_none(text: bytes) -> None:
    assert headers_of(text) == {}


# --- Saying so ---


def test_each_is_said_and_announced(stream: Stream, announced: list[Any], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        stream.add(payload("a"), Reason.TIME_LIMIT, "of mine")
    assert [record.getMessage() for record in caplog.records] == [
        "dead letter of queue of mine: hard time limit; t[a] because"
    ]
    assert announced == [("dead", "a")]
