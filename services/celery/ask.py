"""Asks the demo's search for a word, and shows the task's way through the stack: `make ask WORD=import`."""

import os
import sys
import time
from collections.abc import Iterator

from celery.result import AsyncResult
from celery.states import READY_STATES
from kombu.exceptions import OperationalError
from redis import RedisError

from celery_app import durable
from search import index
from tasks.search import index_corpus
from tasks.search import search as search_task

WAIT = 60  # s for the answer
INDEXED_WITHIN = 180  # s


def wait_for_the_index() -> None:
    """Build the first index if there is none yet, as after the first `make up`. Raises SystemExit."""
    if index.stats(durable.store)["generation"]:
        return
    print("The documents are not indexed yet: the workers of the queue low do it now.", flush=True)
    index_corpus.delay()
    deadline = time.monotonic() + INDEXED_WITHIN
    while not index.stats(durable.store)["generation"]:
        if time.monotonic() > deadline:
            raise SystemExit(f"ask: no index within {INDEXED_WITHIN} s; see make inspect and make logs S=worker-low")
        time.sleep(0.1)


def way(promise: AsyncResult[dict[str, object]], began: float) -> Iterator[str]:
    """Each state of the task as the results have it, with the seconds since its publish. Raises SystemExit."""
    seen, deadline = "PENDING", time.monotonic() + WAIT
    while seen not in READY_STATES:
        if time.monotonic() > deadline:
            raise SystemExit(f"ask: {seen} for {WAIT} s; see make inspect and make logs S=worker-high")
        info = promise.backend.get_task_meta(promise.id)
        if info["status"] != seen:
            seen = info["status"]
            where = f" on {info['result']['hostname']}" if seen == "STARTED" else ""
            yield f"{time.monotonic() - began:6.3f} s  {seen}{where}"


def main(word: str) -> None:
    """Ask, and print the way and the answer. Raises SystemExit for what is wrong."""
    try:
        wait_for_the_index()
        began = time.monotonic()
        promise = search_task.delay(word)
        print(f"{time.monotonic() - began:6.3f} s  published to the queue high, id {promise.id}", flush=True)
        for line in way(promise, began):
            print(line, flush=True)
        answer = promise.get()
    except ValueError as error:
        raise SystemExit(f"WORD: {error}") from None
    except (OperationalError, RedisError) as error:
        raise SystemExit(f"Redis: {error}") from None
    print(f"\n{word}: {answer['occurrences']} times in {answer['documents']} documents; most often in")
    for found in answer["best"]:
        print(f"{found['count']:7}  {found['name']}")
    if address := os.environ.get("FLOWER_ADDRESS"):
        print(f"\nThe task in Flower: http://{address}/task/{promise.id}")


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]))
