"""The guided tour of Celery on the live stack: `make tour`; in the client container `python -m tour [LESSON …]`."""

import argparse
import json
import os
import signal
import sys
from typing import Any, TextIO

from kombu.exceptions import OperationalError
from redis import RedisError

from celery_app import app
from tour.lesson import Lesson
from tour.lessons import CONCEPTS, LESSONS
from tour.run import Result, run, what_is_missing
from tour.show import Screen, console, contents, welcome
from tour.tour import Tour

LIST = "list"  # in place of a lesson


def chosen(names: list[str]) -> list[str]:
    """The lessons of the given names, each of a lesson or of a page; all lessons if there are no names.

    Raises SystemExit for an unknown name.
    """
    pages = {concept.page: [lesson.name for lesson in concept.lessons] for concept in CONCEPTS}
    lessons = [lesson for name in names for lesson in pages.get(name, [name])] or list(LESSONS)
    for name in lessons:
        if name not in LESSONS:
            raise SystemExit(f"LESSON: no lesson {name!r}; make tour LESSON={LIST} shows all lessons")
    return lessons


def following(lessons: list[str]) -> Lesson | None:
    """The lesson after the last of these; None after the last of the tour, and after all of them."""
    everything = list(LESSONS)
    after = everything.index(lessons[-1]) + 1
    return None if lessons == everything or after == len(everything) else LESSONS[everything[after]]


def as_json(done: list[Result]) -> list[dict[str, Any]]:
    """The outcome of each step, for tests and for the pages in docs/lessons/."""
    return [
        {
            "lesson": lesson.name,
            "step": step.title,
            "seconds": round(seconds, 1),
            "findings": {f.name: {"value": f.value, "holds": f.holds, "source": f.source} for f in outcome.findings},
            "error": outcome.error,
            "unavailable": outcome.unavailable,
        }
        for lesson, outcomes, seconds in done
        for step, outcome in zip(lesson.steps, outcomes, strict=False)  # a failed step is the last
    ]


def stop(*_: object) -> None:
    """SIGTERM ends a tour as Ctrl-C does."""
    raise KeyboardInterrupt


def tour(lessons: list[str], screen: Screen, record: TextIO | None) -> int:
    """Run the tour. Returns its exit code: 1 if a check failed, 130 if it was interrupted."""
    tour, done, code = Tour(screen.progress), list[Result](), 0
    signal.signal(signal.SIGTERM, stop)
    try:
        tour.events.start()
        for result in run([LESSONS[name] for name in lessons], tour, screen):
            done.append(result)
            if any(outcome.error for outcome in result[1]) and (missing := what_is_missing()):
                print(f"tour: {missing}", file=sys.stderr)
                code = 1
                break
            code = code or int(any(outcome.failed for outcome in result[1]))
        screen.summary(done, following(lessons))
    except KeyboardInterrupt:
        print("\ntour: interrupted, cleaning up …", file=sys.stderr)
        code = 130
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not interrupt the clean-up
        try:
            tour.clean()
        except (RedisError, OperationalError) as error:
            print(f"tour: could not remove its queues: {error}", file=sys.stderr)
    if record:
        json.dump(as_json(done), record, default=str)
    return code


def main(arguments: list[str]) -> int:
    """Run the lessons named in the arguments. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="tour", description=__doc__)
    parser.add_argument(
        "lessons", nargs="*", metavar="LESSON", help=f"a lesson, or a page; default: all; {LIST}: show them"
    )
    parser.add_argument("--json", action="store_true", help="print the outcomes as JSON, and the tour on stderr")
    options = parser.parse_args(arguments)
    terminal = console(stderr=options.json)
    if options.lessons == [LIST]:
        contents(CONCEPTS, terminal)
        return 0
    lessons = chosen(options.lessons)
    app.loader.import_default_modules()
    if not options.lessons:
        welcome(CONCEPTS, terminal)
    if missing := what_is_missing():
        print(f"tour: {missing}", file=sys.stderr)
        return 1
    pause = os.environ.get("PAUSE") == "1"
    if pause and not sys.stdin.isatty():
        parser.error("PAUSE=1 needs a terminal")
    screen = Screen(terminal, pause)
    return tour(lessons, screen, sys.stdout if options.json else None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
