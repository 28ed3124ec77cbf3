"""The index equals a single-process count of the same files, even if chunks are repeated or die, or files change."""

import json
import multiprocessing
import os
import random
import signal
import threading
import time
from collections import Counter
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from redis import Redis

from search import index
from search.corpus import File, list_files
from search.count import count
from stack.poll import poll_until
from tests.redis_server import RedisServer

LIMIT = 10_000
FILES = 60  # three chunks


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("corpus"))


def fill(folder: Path) -> Path:
    """Files whose words are drawn from a small vocabulary, so that they share most of them."""
    choice, vocabulary = random.Random(1), [f"word{number}" for number in range(200)]
    for number in range(FILES):
        text = " ".join(choice.choices(vocabulary, k=choice.randrange(1, 300)))
        (folder / f"{number:02}.txt").write_text(f"{text} only{number}")
    return folder


def start(client: Redis, run: str, folder: Path) -> dict[str, str]:
    return index.start(client, run, *list_files(folder, LIMIT))


def run_all(client: Redis, run: str, folder: Path) -> dict[str, object]:
    assert start(client, run, folder) == {"run": run, "state": "counting"}
    for chunk in index.missing_chunks(client, run):
        index.count_chunk(client, run, chunk, folder, LIMIT)
    return index.complete(client, run)


def assert_exact(client: Redis, folder: Path) -> None:
    plain, stored = count(folder, LIMIT), index.stats(client)
    assert index.audit(client) == plain
    assert (stored["documents"], stored["words"], stored["terms"]) == (plain.documents, plain.words, plain.terms)


def test_the_single_process_count_is_correct(tmp_path: Path) -> None:
    """The single-process count itself, compared with numbers counted by hand."""
    (tmp_path / "a.txt").write_text("to be or not to be")
    (tmp_path / "b.txt").write_text("To do!")
    (tmp_path / "c.txt").write_bytes(b"\xff")
    totals = count(tmp_path, LIMIT)
    assert (totals.documents, totals.words, totals.terms) == (2, 8, 5)
    (tmp_path / "a.txt").write_text("to be or not to do")
    assert count(tmp_path, LIMIT).checksum != totals.checksum


def test_a_run_equals_the_single_process_count(client: Redis, folder: Path) -> None:
    report = run_all(client, "run", folder)
    assert (report["state"], report["documents"], report["new"]) == ("complete", FILES, FILES)
    assert_exact(client, folder)


def test_a_search_finds_the_documents_with_most_occurrences(client: Redis, folder: Path) -> None:
    run_all(client, "run", folder)
    plain = {file.name: Counter(file.read_text().split())["word7"] for file in folder.iterdir()}
    best = sorted(((number, name) for name, number in plain.items() if number), key=lambda item: (-item[0], item[1]))
    assert index.search(client, "Word7", 5) == {
        "term": "word7",
        "generation": "run",
        "documents": len(best),
        "occurrences": sum(plain.values()),
        "best": [{"name": name, "count": number} for number, name in best[:5]],
    }
    assert index.search(client, "nowhere", 5)["best"] == []


def test_before_the_first_run_nothing_is_found(client: Redis) -> None:
    assert index.search(client, "word", 5)["generation"] is None
    assert index.stats(client) == {
        "generation": None,
        "documents": 0,
        "words": 0,
        "terms": 0,
        "completed": None,
        "run": None,
    }


@pytest.mark.parametrize(
    ("term", "error", "message"),
    [
        ("", ValueError, "one word"),
        ("  !", ValueError, "one word"),
        ("two words", ValueError, "one word"),
        ("x" * 65, ValueError, "65 characters; the limit is 64"),
        ("x" * 10_000_000, ValueError, "the limit is 64"),
        (None, TypeError, "got NoneType"),
        (7, TypeError, "got int"),
    ],
)
def test_a_bad_term_is_refused_with_the_reason(client: Redis, term: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"term: .*{message}") as caught:
        index.search(client, term, 5)
    assert len(str(caught.value)) < 200


@hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.sampled_from(["start", "complete", "clean", 0, 1, 2]), max_size=20))
def test_any_order_and_any_repetition_gives_the_exact_index(
    client: Redis, folder: Path, steps: list[str | int]
) -> None:
    client.flushall()
    start(client, "run", folder)
    for step in [*steps, 0, 1, 2, "complete"]:
        if step == "start":
            start(client, "run", folder)
        elif step == "clean":
            index.remove_unused_documents(client, 100)
        elif step == "complete":
            index.complete(client, "run")
        else:
            index.count_chunk(client, "run", int(step), folder, LIMIT)
    assert_exact(client, folder)


def count_all_chunks(url: str, run: str, folder: Path, ready: Barrier) -> None:
    client = Redis.from_url(url, decode_responses=True)
    ready.wait(timeout=30)
    for chunk in range(3):
        index.count_chunk(client, run, chunk, folder, LIMIT)
    index.complete(client, run)


def test_processes_that_do_the_same_chunks_at_the_same_time(
    client: Redis, redis_server: RedisServer, folder: Path
) -> None:
    start(client, "run", folder)
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Barrier(3)
    arguments = (redis_server.url, "run", folder, ready)
    processes = [spawn.Process(target=count_all_chunks, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert_exact(client, folder)
    assert client.hlen(index.DOCUMENTS) == FILES


def test_processes_killed_in_the_middle(client: Redis, redis_server: RedisServer, folder: Path) -> None:
    """Each is killed as soon as it has added documents, in the middle of a chunk or between two."""
    start(client, "run", folder)
    spawn = multiprocessing.get_context("spawn")
    for _ in range(3):
        before, ready = client.hlen(index.DOCUMENTS), spawn.Barrier(1)
        process = spawn.Process(target=count_all_chunks, args=(redis_server.url, "run", folder, ready))
        process.start()
        grown = lambda before=before: client.hlen(index.DOCUMENTS) > before  # noqa: E731
        poll_until(grown, "a document to be added", timeout=30)
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        if client.hlen(index.DOCUMENTS) == FILES:
            break
    for chunk in index.missing_chunks(client, "run"):
        index.count_chunk(client, "run", chunk, folder, LIMIT)
    index.complete(client, "run")
    assert_exact(client, folder)


def test_only_what_changed_is_counted_again(client: Redis, tmp_path: Path) -> None:
    fill(tmp_path)
    run_all(client, "first", tmp_path)
    assert run_all(client, "second", tmp_path)["new"] == 0
    (tmp_path / "00.txt").write_text("changed text")
    (tmp_path / "01.txt").unlink()
    (tmp_path / "02.txt").rename(tmp_path / "renamed.txt")
    (tmp_path / "added.txt").write_text("added text")
    report = run_all(client, "third", tmp_path)
    assert (report["documents"], report["new"]) == (FILES, 3)
    assert_exact(client, tmp_path)
    assert index.search(client, "only1", 5)["documents"] == 0
    assert index.search(client, "only2", 5)["best"] == [{"name": "renamed.txt", "count": 1}]


def test_documents_in_no_index_are_removed_completely(client: Redis, tmp_path: Path) -> None:
    fill(tmp_path)
    run_all(client, "first", tmp_path)
    for file in sorted(tmp_path.iterdir())[10:]:
        file.unlink()
    run_all(client, "second", tmp_path)
    assert index.remove_unused_documents(client, 100) == 0  # the first generation may still be read
    client.delete("index:generation:first:names")  # as its expiry does
    assert index.remove_unused_documents(client, 20) == 20
    assert index.remove_unused_documents(client, 100) == FILES - 30
    assert_exact(client, tmp_path)
    fresh = count(tmp_path, LIMIT)
    assert len(client.keys("index:term:*")) == fresh.terms
    assert len(client.keys("index:document:*")) == len(client.keys("index:words:*")) == fresh.documents
    assert client.smembers(index.GENERATIONS) == {"second"}


def test_nothing_is_removed_while_a_run_is_active(client: Redis, tmp_path: Path) -> None:
    """The run has found the document counted already and is about to list it."""
    fill(tmp_path)
    run_all(client, "first", tmp_path)
    text = (tmp_path / "00.txt").read_text()
    (tmp_path / "00.txt").unlink()
    run_all(client, "second", tmp_path)
    client.delete("index:generation:first:names")
    (tmp_path / "00.txt").write_text(text)
    start(client, "third", tmp_path)
    assert index.remove_unused_documents(client, 100) == 0
    assert run_all_started(client, "third", tmp_path)["new"] == 0
    assert_exact(client, tmp_path)


def run_all_started(client: Redis, run: str, folder: Path) -> dict[str, object]:
    for chunk in index.missing_chunks(client, run):
        index.count_chunk(client, run, chunk, folder, LIMIT)
    return index.complete(client, run)


def test_readers_see_one_complete_index_or_the_next(client: Redis, redis_server: RedisServer, tmp_path: Path) -> None:
    """A reader's answers while 20 runs are completed between them all belong to one of the two states of the folder."""
    states = []
    for number in range(2):
        state = tmp_path / str(number)
        state.mkdir()
        for name in range(5 + number):
            (state / f"{name}.txt").write_text("common " * (name + 1 + number))
        states.append(state)
    run_all(client, "run0", states[0])
    expected = [(5, 1 + 2 + 3 + 4 + 5), (6, 2 + 3 + 4 + 5 + 6 + 7)]
    stop, seen = threading.Event(), Counter[tuple[int, int]]()

    def read() -> None:
        reader = Redis.from_url(redis_server.url, decode_responses=True)
        while not stop.is_set():
            answer = index.search(reader, "common", 10)
            seen[answer["documents"], answer["occurrences"]] += 1

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(1, 21):
            run_all(client, f"run{number}", states[number % 2])
            index.remove_unused_documents(client, 100)
    finally:
        stop.set()
        reader.join()
    assert set(seen) == set(expected)


def test_a_second_run_at_the_same_time_says_so(client: Redis, folder: Path) -> None:
    start(client, "first", folder)
    assert start(client, "second", folder) == {"run": "first", "state": "active already"}
    assert index.count_chunk(client, "second", 0, folder, LIMIT) == {"state": "expired"}
    assert run_all_started(client, "first", folder)["state"] == "complete"
    assert start(client, "first", folder) == {"run": "first", "state": "complete"}
    assert start(client, "second", folder) == {"run": "second", "state": "counting"}


def test_a_run_without_all_chunks_is_not_completed(client: Redis, folder: Path) -> None:
    start(client, "run", folder)
    index.count_chunk(client, "run", 1, folder, LIMIT)
    status = index.complete(client, "run")
    assert (status["state"], status["chunks"], status["missing"]) == ("counting", 3, 2)
    assert client.get(index.CURRENT) is None


def test_a_superseded_run_neither_completes_nor_counts(
    client: Redis, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(client, "stuck", folder)
    index.count_chunk(client, "stuck", 0, folder, LIMIT)
    monkeypatch.setattr(index, "RUN_ABANDONED_AFTER", -1)
    run_all(client, "next", folder)
    assert index.count_chunk(client, "stuck", 1, folder, LIMIT) == {"state": "superseded"}
    assert index.complete(client, "stuck")["state"] == "superseded"
    assert client.get(index.CURRENT) == "next"
    assert_exact(client, folder)


def test_a_run_superseded_while_it_is_being_completed_does_not_replace_the_next(
    client: Redis, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge = index._terms

    def changed_in_between(client: Redis, numbers: list[str]) -> set[str]:
        monkeypatch.setattr(index, "_terms", merge)
        client.hset("run:slow", "progress", 0)
        assert run_all(client, "next", folder)["state"] == "complete"
        return merge(client, numbers)

    monkeypatch.setattr(index, "_terms", changed_in_between)
    assert run_all(client, "slow", folder)["state"] == "superseded"
    assert client.get(index.CURRENT) == "next"


def test_chunks_are_overdue_after_the_deadline_and_once(
    client: Redis, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(client, "run", folder)
    index.count_chunk(client, "run", 1, folder, LIMIT)
    assert index.overdue(client, "run") == []
    client.hset("run:run", mapping=dict.fromkeys(("progress", "sent"), time.time() - index.RUN_DEADLINE - 1))
    assert index.overdue(client, "run") == [0, 2]
    assert index.overdue(client, "run") == []


def test_a_run_without_progress_is_aborted(client: Redis, folder: Path) -> None:
    start(client, "run", folder)
    assert not index.abandon(client, "run")
    client.hset("run:run", "progress", time.time() - index.RUN_ABANDONED_AFTER - 1)
    assert index.abandon(client, "run")
    assert index.run_status(client, "run")["state"] == "abandoned"
    assert start(client, "next", folder)["state"] == "counting"


def test_everything_of_a_run_expires_but_the_index(client: Redis, folder: Path) -> None:
    run_all(client, "first", folder)
    assert {key for key in client.keys("run:*") if client.ttl(key) == -1} == {"run:last"}
    assert client.ttl("index:generation:first:names") == -1
    run_all(client, "second", folder)
    assert 0 < client.ttl("index:generation:first:names") <= index.READER_GRACE
    start(client, "third", folder)
    index.count_chunk(client, "third", 0, folder, LIMIT)
    assert client.ttl("index:generation:third:names") > 0


def test_files_that_cannot_be_indexed_are_named_with_the_reason(client: Redis, tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("words")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "huge.txt").write_text("x" * (LIMIT + 1))
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "gone.txt").write_text("words")
    start(client, "run", tmp_path)
    (tmp_path / "gone.txt").unlink()
    report = run_all_started(client, "run", tmp_path)
    assert report["documents"] == 1
    assert report["unusable"] == {
        "count": 6,
        "reasons": {
            "empty": 1,
            "larger than MAX_DOCUMENT_BYTES": 1,
            "not UTF-8": 1,
            "not a regular file": 1,
            "symbolic link": 1,
            "vanished": 1,
        },
        "first": [
            {"name": "huge.txt", "reason": "larger than MAX_DOCUMENT_BYTES"},
            {"name": "loop", "reason": "symbolic link"},
            {"name": "pipe", "reason": "not a regular file"},
            {"name": "empty.txt", "reason": "empty"},
            {"name": "gone.txt", "reason": "vanished"},
            {"name": "latin.txt", "reason": "not UTF-8"},
        ],
    }
    assert_exact(client, tmp_path)


def test_the_report_of_many_unusable_files_stays_small(client: Redis, tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / f"{number:04}{'n' * 200}").symlink_to("nowhere")
    report = run_all(client, "run", tmp_path)
    assert report["documents"] == 0
    assert report["unusable"]["count"] == 1000  # type: ignore[index]
    assert len(json.dumps(report)) < 10_000
    assert len(client.hget("run:run", "unusable")) < 10_000


def test_chunks_are_cut_by_number_and_by_bytes() -> None:
    assert [len(chunk) for chunk in index.cut_into_chunks([File(str(n), 1) for n in range(60)])] == [25, 25, 10]
    half = index.CHUNK_BYTES // 2
    sizes = [half, half, half, 2 * index.CHUNK_BYTES, 1, 1]
    chunks = index.cut_into_chunks([File(str(number), size) for number, size in enumerate(sizes)])
    assert chunks == [["0", "1"], ["2"], ["3"], ["4", "5"]]
