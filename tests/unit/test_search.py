"""The tasks of the index: a run as a chord, and its repair."""

import time
from pathlib import Path
from unittest.mock import Mock

import pytest
from redis import Redis

import settings as configuration
from celery_durable import Durable
from search import index
from search.corpus import list_files
from search.count import Totals, count
from tasks import search


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(30):
        (tmp_path / f"{number:02}.txt").write_text("word " * number + "end")
    return tmp_path


@pytest.fixture
def client(client: Redis, folder: Path, monkeypatch: pytest.MonkeyPatch, eager: None) -> Redis:
    """The tasks use this Redis and folder, and run in this process when they are sent."""
    monkeypatch.setattr(Durable, "store", client)
    monkeypatch.setattr(configuration.settings, "corpus_dir", folder)
    return client


def test_a_run_is_a_chord_that_completes_it(client: Redis, folder: Path) -> None:
    started = search.index_corpus.apply(task_id="run").get()
    assert started == {"run": "run", "state": "counting", "chunks": 2}
    assert search.stats.delay().get()["generation"] == "run"
    assert Totals(**search.audit.delay().get()) == count(folder, 1_000_000)
    assert search.search.delay("word", 1).get()["best"] == [{"name": "29.txt", "count": 29}]


def test_a_run_delivered_twice_continues_and_a_second_run_does_not(
    client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(search, "chord", Mock())  # as if its worker had died before sending it
        search.index_corpus.apply(task_id="run")
        assert search.index_corpus.apply(task_id="other").get() == {"run": "run", "state": "active already"}
    search.index_corpus.apply(task_id="run")
    assert client.get(index.CURRENT) == "run"
    assert search.index_corpus.apply(task_id="run").get() == {"run": "run", "state": "complete"}


def test_an_empty_folder_makes_an_empty_index(client: Redis, folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    search.index_corpus.apply(task_id="run")
    assert (client.get(index.CURRENT), search.stats.delay().get()["documents"]) == ("run", 0)


def test_a_missing_folder_is_a_failure_that_leaves_the_index(
    client: Redis, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search.index_corpus.apply(task_id="run")
    monkeypatch.setattr(configuration.settings, "corpus_dir", folder / "missing")
    with pytest.raises(NotADirectoryError, match="CORPUS_DIR"):
        search.index_corpus.apply(task_id="next").get()
    assert search.stats.delay().get()["documents"] == 30


def lose_all_but(client: Redis, folder: Path, chunks: list[int]) -> None:
    """A run whose other chunks and callback are lost."""
    index.start(client, "run", *list_files(folder, 1000))
    for chunk in chunks:
        index.count_chunk(client, "run", chunk, folder, 1000)


def test_repair_completes_a_run_whose_callback_never_came(client: Redis, folder: Path) -> None:
    lose_all_but(client, folder, [0, 1])
    assert search.repair.run() == {"run": "run", "state": "complete", "missing": 0, "sent_again": 0}
    assert search.repair.run() == {"run": None}
    assert Totals(**search.audit.delay().get()) == count(folder, 1_000_000)


def test_repair_sends_what_is_overdue_again_and_completes_the_run_next_time(client: Redis, folder: Path) -> None:
    lose_all_but(client, folder, [0])
    assert search.repair.run() == {"run": "run", "state": "counting", "missing": 1, "sent_again": 0}
    client.hset("run:run", mapping=dict.fromkeys(("progress", "sent"), time.time() - index.RUN_DEADLINE))
    assert search.repair.run() == {"run": "run", "state": "counting", "missing": 1, "sent_again": 1}
    assert search.repair.run()["state"] == "complete"
    assert Totals(**search.audit.delay().get()) == count(folder, 1_000_000)


def test_reconcile_aborts_runs_that_are_stuck(client: Redis, folder: Path) -> None:
    lose_all_but(client, folder, [0])
    client.hset("run:run", "progress", time.time() - index.RUN_ABANDONED_AFTER - 1)
    assert search.repair.run() == {"run": "run", "state": "abandoned"}
    assert search.repair.run() == {"run": None}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("",), "term: a search takes one word"),
        (("x" * 65,), "limit is 64"),
        (("word", 0), "limit: should be .* 1;"),
        ((7,), "term: .*string"),
    ],
)
def test_a_bad_query_fails_at_once(client: Redis, arguments: tuple[object, ...], message: str) -> None:
    result = search.search.apply(args=arguments)
    assert result.state == "FAILURE"
    with pytest.raises(ValueError, match=message):
        result.get()
