"""Runs lessons, one step after another."""

import time
from collections.abc import Iterator, Sequence

from redis import RedisError

from celery_app import app, durable
from queues import QUEUES
from tour import record
from tour.lesson import Lesson, Step
from tour.record import Outcome
from tour.show import Screen
from tour.tour import Tour
from tour.waiting import TookTooLongError, UnavailableError, describe

Result = tuple[Lesson, list[Outcome], float]


def what_is_missing() -> str:
    """The first missing service of those that every lesson needs, and what to do; empty if none is missing."""
    for name, client in (("redis", durable.broker), ("redis-results", durable.store)):
        try:
            client.ping()
        except RedisError as error:
            return f"{name} does not answer ({error}). Is the stack up? make up; if it is: make logs S={name}"
    answers = app.control.inspect(timeout=2).active_queues() or {}
    consumed = {queue["name"] for queues in answers.values() for queue in queues}
    for queue in (each.name for each in QUEUES):
        if queue not in consumed:
            scale = f"make scale {queue.upper()}=1"
            return f"no worker consumes the queue `{queue}`: make up, or {scale}; make logs S=worker-{queue}"
    return ""


def run_step(tour: Tour, step: Step, screen: Screen) -> Outcome:
    """Run one step; an error becomes part of its outcome."""
    outcome = Outcome()
    tour.events.begin(screen.event)
    try:
        outcome.findings = record.findings(step, step.run(tour))
    except UnavailableError as error:
        outcome.unavailable = str(error)
    except TookTooLongError as error:
        outcome.error = str(error)
    except Exception as error:
        outcome.error = describe(error)
    return outcome


def run(lessons: Sequence[Lesson], tour: Tour, screen: Screen) -> Iterator[Result]:
    """Run lessons; yields each with its outcomes and duration. A failed step ends its lesson."""
    for lesson in lessons:
        begun = time.monotonic()
        outcomes: list[Outcome] = []
        screen.lesson(lesson)
        for number, step in enumerate(lesson.steps, 1):
            screen.step(number, len(lesson.steps), step)
            outcomes.append(run_step(tour, step, screen))
            screen.result(step, outcomes[-1])
            if outcomes[-1].failed:
                break
        tour.end_lesson()
        yield lesson, outcomes, time.monotonic() - begun
