"""Publishes tasks until SIGTERM: the program of a separate client container.

Each step is a line in a log on a mounted folder, so that begun calls are known even if this program is killed:

    begun TASK_ID TIME
    accepted TASK_ID TIME SECONDS     the call has returned
    raised TASK_ID TIME SECONDS ERROR     the call is repeated with the same id
"""

import argparse
import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from celery import chord

from celery_app import app, durable
from chaos import ledger

THREADS = 4
THREADS_THAT_WAIT = 32  # with --on-disk: each publishes one task per second
CHORD_MEMBERS = 4
REPEAT_AFTER = 0.5  # s
GIVES_UP_AFTER = 60  # s after SIGTERM

stopping = threading.Event()


class Log:
    """Lines of a file that is kept if this process is killed."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

    def write(self, *words: object) -> None:
        """One line, in one write."""
        os.write(self._file, (" ".join(map(str, words)) + "\n").encode())


def publish(task_id: str, number: int) -> list[str]:
    """Publish a task: most are short, some long, some with a countdown, some a chord, some left to the reconciler.

    Returns the ids of all its tasks.
    """
    options: dict[str, Any] = {"task_id": task_id}
    if number % 97 == 50:
        members = [f"{task_id}.{member}" for member in range(CHORD_MEMBERS)]
        header = [ledger.apply.s(member, 0.05).set(task_id=member) for member in members]
        chord(header, ledger.join.s(task_id).set(task_id=task_id)).apply_async()
        return [task_id, *members]
    if number % 53 == 20 and durable.config.outbox:
        options["later"] = True
    if number % 20 == 7:
        options["countdown"] = 6
    seconds = 2.0 if number % 40 == 13 else 0.3 if number % 8 == 3 else 0.02
    ledger.apply.apply_async((task_id, seconds), **options)
    return [task_id]


def run(numbers: Iterator[int], prefix: str, rate: float, on_disk: bool, log: Log) -> None:
    """Publish one task after another, each until it is accepted; with `on_disk` until it is on the disk."""
    due = time.monotonic()
    for number in numbers:
        if stopping.wait(max(0.0, due - time.monotonic())):
            return
        due = max(due + 1 / rate, time.monotonic() - 1)  # no burst after an interruption
        task_id = f"{prefix}-{number}"
        log.write("begun", task_id, time.time())
        give_up = float("inf")
        while time.monotonic() < give_up:
            began = time.monotonic()
            try:
                task_ids = publish(task_id, number)
                if on_disk:
                    durable.wait_until_on_disk()
            except Exception as error:
                log.write("raised", task_id, time.time(), time.monotonic() - began, type(error).__name__)
                if stopping.is_set():
                    give_up = min(give_up, time.monotonic() + GIVES_UP_AFTER)
                time.sleep(REPEAT_AFTER)
            else:
                took = time.monotonic() - began
                for each in task_ids:
                    log.write("accepted", each, time.time(), took)
                break


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("prefix")
    parser.add_argument("rate", type=float, help="tasks per second")
    parser.add_argument("log")
    parser.add_argument("--first", type=int, default=0, help="number of the first task")
    parser.add_argument("--on-disk", action="store_true", help="wait for the disk after each")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    app.loader.import_default_modules()
    log = Log(options.log)
    count = THREADS_THAT_WAIT if options.on_disk else THREADS
    publish_all = partial(run, prefix=options.prefix, rate=options.rate / count, on_disk=options.on_disk, log=log)
    threads = [
        threading.Thread(target=publish_all, args=(itertools.count(options.first + thread, count),))
        for thread in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
