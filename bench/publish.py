"""A publisher in a process of its own: `python -m bench.publish APP fill 0 1000`.

fill FIRST STOP: no-ops with these numbers. rate COUNT: prints the seconds that so many took.
timed COUNT EVERY: at times that vary around EVERY seconds. pauses COUNT SECONDS: tasks that take so long.
due COUNT AHEAD: due in a time that varies around AHEAD. together COUNT AHEAD: all due at the same time.
later: a no-op with an ETA.
"""

import random
import sys
import time
from contextlib import nullcontext
from importlib import import_module
from typing import Any

WARM_UP = 100


def fill(app: Any, first: int, stop: int) -> None:
    with getattr(app, "batch", nullcontext)():
        for number in range(first, stop):
            app.send(number)


def rate(app: Any, count: int) -> None:
    fill(app, 0, WARM_UP)
    began = time.perf_counter()
    fill(app, 0, count)
    print(time.perf_counter() - began)


def timed(app: Any, count: int, every: float) -> None:
    for _ in range(count):
        app.send_timed()
        time.sleep(random.uniform(0.5, 1.5) * every)


def due(app: Any, count: int, ahead: float) -> None:
    for _ in range(count):
        app.send_due(random.uniform(0.5, 1.5) * ahead)


def together(app: Any, count: int, ahead: float) -> None:
    at = time.monotonic() + ahead
    for _ in range(count):
        app.send_due(at - time.monotonic())


def pauses(app: Any, count: int, seconds: float) -> None:
    for _ in range(count):
        app.send_pause(seconds)


if __name__ == "__main__":
    app = import_module(f"bench.apps.{sys.argv[1]}")
    match sys.argv[2:]:
        case ["fill", first, stop]:
            fill(app, int(first), int(stop))
        case ["rate", count]:
            rate(app, int(count))
        case ["timed", count, every]:
            timed(app, int(count), float(every))
        case ["due", count, ahead]:
            due(app, int(count), float(ahead))
        case ["together", count, ahead]:
            together(app, int(count), float(ahead))
        case ["pauses", count, seconds]:
            pauses(app, int(count), float(seconds))
        case ["later"]:
            app.send_later()
        case other:
            raise SystemExit(f"bench.publish: unknown: {other}")
