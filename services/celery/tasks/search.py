"""The stack's main job: low-priority workers index a folder of documents, high-priority workers answer queries on it.

A run is a chord: `index_corpus` cuts the folder into chunks, `count_chunk` counts one, `publish` merges them and makes
the new index the current one. Messages carry a run's id and a chunk's number; file names and counts stay in Redis.
Each step may run twice, at the same time or again later, without changing the result (tasks/inverted_index.py), so a
lost callback is mended by doing the step again: see `reconcile`.
"""

from dataclasses import asdict
from typing import Annotated, Any

from celery import chord, uuid
from celery.utils.log import get_task_logger
from pydantic import Field
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError
from redis.exceptions import TimeoutError as RedisTimeoutError

from celery_app import Task, app
from delivery.periodic import PeriodicTask
from settings import results_client, settings
from tasks import inverted_index
from tasks.arguments import Name, checked
from tasks.corpus import list_files

logger = get_task_logger(__name__)

MAX_BEST = 100


class IndexTask(Task):
    """Base of tasks that work on the index: while Redis is away or full they wait, for about a minute in all."""

    abstract = True
    autoretry_for = (RedisConnectionError, RedisTimeoutError, OutOfMemoryError)
    max_retries = 6
    retry_backoff = 1  # s: 1, 2, 4 … with jitter
    retry_backoff_max = 30
    ignore_result = False


@app.task(base=PeriodicTask, bind=True, ignore_result=False)
def index_corpus(self: PeriodicTask) -> dict[str, Any]:
    """Start indexing what changed in CORPUS_DIR; the run has this task's id.

    Returns {"run", "state": "counting", "chunks"}, or another run's id and "active already". `stats` tells when it is
    published. Raises NotADirectoryError when there is no such folder.
    """
    client = results_client()
    files, unusable = list_files(settings.corpus_dir, settings.max_document_bytes)
    run = inverted_index.start(client, self.request.id or uuid(), files, unusable)
    if run["state"] != "counting":
        logger.info("no run started: %s is %s", run["run"], run["state"])
        return dict(run)
    missing = inverted_index.missing_chunks(client, run["run"])
    if missing:
        chord([count_chunk.s(run["run"], chunk) for chunk in missing], publish.si(run["run"])).apply_async()
    else:
        publish.delay(run["run"])
    return {**run, "chunks": len(missing)}


@app.task(base=IndexTask)
@checked
def count_chunk(run: Name, chunk: Annotated[int, Field(ge=0)]) -> dict[str, Any]:
    """Count one chunk of a run's documents."""
    client = results_client()
    return inverted_index.count_chunk(client, run, chunk, settings.corpus_dir, settings.max_document_bytes)


@app.task(base=IndexTask)
@checked
def publish(run: Name) -> dict[str, Any]:
    """Make a run's index the current one, once all chunks are in. Returns the run's report."""
    return inverted_index.publish(results_client(), run)


@app.task(base=IndexTask, throws=(ValueError,))  # who asks is told; no traceback in the worker's log
@checked
def search(term: str, limit: Annotated[int, Field(ge=1, le=MAX_BEST)] = 10) -> dict[str, Any]:
    """The documents with most occurrences of one word; see inverted_index.search.

    Raises ValueError when the term is not one word of at most 64 characters, or the limit is not 1..100.
    """
    return inverted_index.search(results_client(), term, limit)


@app.task(base=IndexTask)
def stats() -> dict[str, Any]:
    """Totals of the index and the state of the last run; see inverted_index.stats."""
    return inverted_index.stats(results_client())


@app.task(base=IndexTask)
def audit() -> dict[str, Any]:
    """The totals that the postings really add up to; `python -m tasks.count` must print the same."""
    return asdict(inverted_index.audit(results_client()))


def reconcile() -> dict[str, Any]:
    """Mend the active run: publish it if all chunks are in, dispatch again what is overdue, give up what is stuck.

    A chord's callback never comes when a chunk failed for good, or its message was lost with a killed worker.
    """
    client = results_client()
    run = client.get(inverted_index.ACTIVE)
    if not run:
        return {"run": None}
    if inverted_index.abandon(client, run):
        logger.error("run %s given up: no chunk came in for %d s", run, inverted_index.RUN_ABANDONED_AFTER)
        return {"run": run, "state": "abandoned"}
    status = inverted_index.publish(client, run)
    overdue = inverted_index.overdue(client, run) if status["missing"] else []
    for chunk in overdue:
        count_chunk.delay(run, chunk)
    if overdue:
        logger.warning("run %s: %d chunks overdue, dispatched again", run, len(overdue))
    return {"run": run, "state": status["state"], "missing": status["missing"], "dispatched": len(overdue)}
