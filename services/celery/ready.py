"""Shows that the started stack works, at the end of `make up`: `python ready.py high low`.

A task on each named queue is answered by a worker, and beat's messages are sent and run. Exit code 1 says what is not.
"""

import sys
import time
from collections.abc import Iterator

from celery.exceptions import TimeoutError as ResultTimeoutError
from celery.result import AsyncResult
from kombu.exceptions import OperationalError
from redis import RedisError

from celery_app import durable
from celery_durable.periodic import RECONCILE
from settings import DELIVERY
from tasks.maintenance import canary

WAIT = 60  # s; a busy worker first ends a task


def answers(queues: list[str]) -> Iterator[tuple[str, str]]:
    """Publish a canary to each queue; yield the queue and how it was answered. Raises SystemExit for none."""
    sent: dict[str, tuple[float, AsyncResult[None]]] = {}
    for queue in queues:
        sent[queue] = time.monotonic(), canary.apply_async(queue=queue, priority=0, ignore_result=False)
    for queue, (began, promise) in sent.items():
        try:
            promise.get(timeout=WAIT)
        except ResultTimeoutError:
            raise SystemExit(
                f"queue {queue}: no worker answered within {WAIT} s; see make logs S=worker-{queue}"
            ) from None
        yield queue, f"answered in {time.monotonic() - began:.2f} s"


def beat_sends() -> str:
    """Wait until a message has run that beat sent not longer ago than its interval. Raises SystemExit."""
    oldest = time.time() - DELIVERY.reconcile_interval
    deadline = time.monotonic() + WAIT
    while not durable.store.zrangebyscore(durable.ticks.key(RECONCILE), oldest, "+inf", start=0, num=1):
        if time.monotonic() > deadline:
            raise SystemExit(f"beat: none of its messages ran within {WAIT} s; see make logs S=beat")
        time.sleep(0.1)
    return "its messages are sent and run"


def main(queues: list[str]) -> None:
    """Print a line for each; raises SystemExit for the first that does not work."""
    try:
        for queue, how in answers(queues):
            print(f"  {'queue ' + queue:<22} {how}", flush=True)
        print(f"  {'beat':<22} {beat_sends()}", flush=True)
    except (OperationalError, RedisError) as error:
        raise SystemExit(f"Redis: {error}") from error


if __name__ == "__main__":
    main(sys.argv[1:])
