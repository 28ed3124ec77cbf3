"""The demo's main job: low-priority workers index a folder of documents, high-priority workers answer queries on it.

A run is a chord: `index_corpus` splits the folder into chunks, `count_chunk` counts one, `complete` merges them and
makes the new index the current one. Messages contain a run's id and a chunk's number; file names and counts stay in
Redis. Each step may run twice, concurrently or later, without changing the result (search/index.py), so `repair` can
replace a lost callback by running the step again.
"""

from dataclasses import asdict
from typing import Annotated, Any

from celery import chord, uuid
from celery.utils.log import get_task_logger
from pydantic import Field
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError
from redis.exceptions import TimeoutError as RedisTimeoutError

from celery_app import Task, app, durable
from celery_durable import PeriodicTask
from search import index
from search.corpus import list_files
from settings import settings
from tasks.arguments import Name, checked

logger = get_task_logger(__name__)

MAX_BEST = 100


class IndexTask(Task):
    """Base class of index tasks: while Redis is unavailable or full they are retried, for about a minute in total."""

    abstract = True
    autoretry_for = (RedisConnectionError, RedisTimeoutError, OutOfMemoryError)
    max_retries = 6
    retry_backoff = 1  # s: 1, 2, 4 … with jitter
    retry_backoff_max = 30
    ignore_result = False


@app.task(base=PeriodicTask, bind=True, ignore_result=False)
def index_corpus(self: PeriodicTask) -> dict[str, Any]:
    """Start indexing the changes in CORPUS_DIR; the run has this task's id.

    Returns {"run", "state": "counting", "chunks"}, or another run's id and "active already". `stats` shows when it is
    complete. Raises NotADirectoryError if there is no such folder.
    """
    store = durable.store
    files, unusable = list_files(settings.corpus_dir, settings.max_document_bytes)
    run = index.start(store, self.request.id or uuid(), files, unusable)
    if run["state"] != "counting":
        logger.info("no run started: %s is %s", run["run"], run["state"])
        return dict(run)
    missing = index.missing_chunks(store, run["run"])
    if missing:
        chord([count_chunk.s(run["run"], chunk) for chunk in missing], complete.si(run["run"])).apply_async()
    else:
        complete.delay(run["run"])
    return {**run, "chunks": len(missing)}


@app.task(base=IndexTask)
@checked
def count_chunk(run: Name, chunk: Annotated[int, Field(ge=0)]) -> dict[str, Any]:
    """Count one chunk of a run's documents."""
    return index.count_chunk(durable.store, run, chunk, settings.corpus_dir, settings.max_document_bytes)


@app.task(base=IndexTask)
@checked
def complete(run: Name) -> dict[str, Any]:
    """Make a run's index the current one, once all chunks are counted. Returns the run's report."""
    return index.complete(durable.store, run)


@app.task(base=IndexTask, throws=(ValueError,))  # the caller gets the error; no traceback in the worker's log
@checked
def search(term: str, limit: Annotated[int, Field(ge=1, le=MAX_BEST)] = 10) -> dict[str, Any]:
    """The documents with most occurrences of one word; see index.search.

    Raises ValueError when the term is not one word of at most 64 characters, or the limit is not 1..100.
    """
    return index.search(durable.store, term, limit)


@app.task(base=IndexTask)
def stats() -> dict[str, Any]:
    """Totals of the index and the state of the last run; see index.stats."""
    return index.stats(durable.store)


@app.task(base=IndexTask)
def audit() -> dict[str, Any]:
    """The totals computed from the postings; `python -m search.count` must print the same."""
    return asdict(index.audit(durable.store))


@app.task(base=PeriodicTask, ignore_result=False)
def repair() -> dict[str, Any]:
    """Repair the active run: complete it if all chunks are counted, send overdue chunks again, or abandon it.

    A chord's callback is never sent if a chunk failed for good, or its message was lost with a killed worker.
    """
    store = durable.store
    run = store.get(index.ACTIVE)
    if not run:
        return {"run": None}
    if index.abandon(store, run):
        logger.error("run %s abandoned: no chunk was counted for %d s", run, index.RUN_ABANDONED_AFTER)
        return {"run": run, "state": "abandoned"}
    status = index.complete(store, run)
    overdue = index.overdue(store, run) if status["missing"] else []
    for chunk in overdue:
        count_chunk.delay(run, chunk)
    if overdue:
        logger.warning("run %s: %d chunks overdue, sent again", run, len(overdue))
    return {"run": run, "state": status["state"], "missing": status["missing"], "sent_again": len(overdue)}
