"""States."""

from celery_app import app
from tasks import advanced, basic
from tour.evidence import Evidence, at_least, containing, matching
from tour.lesson import Concept
from tour.tour import Tour

CONCEPT = Concept(
    "States",
    "states",
    "The result backend stores one state for each task; the workers' events show more.",
)

states = CONCEPT.lesson("six-states", "PENDING, STARTED, SUCCESS, FAILURE, RETRY, REVOKED, each with a real task")


@states.step(
    "PENDING, STARTED, SUCCESS",
    shows=(basic.sleep,),
    covers=("PENDING", "STARTED", "SUCCESS"),
    expect={"states": ["PENDING", "STARTED", "SUCCESS"], "result": 1},
    learn="STARTED is only stored because `task_track_started` is on; by default PENDING is followed by SUCCESS.",
)
def success(tour: Tour) -> Evidence:
    promise = basic.sleep.apply_async((1,), countdown=1)
    return {"states": tour.backend.states(promise), "result": tour.backend.result(promise)}


@states.step(
    "FAILURE: the exception and its traceback are the result",
    shows=(basic.failing,),
    covers=("FAILURE",),
    expect={
        "state": "FAILURE",
        "error": "RuntimeError: this task always fails: as shown",
        "traceback": matching("in failing", "names the function that failed"),
    },
    learn="A failed task's exception is stored even if results are ignored (`task_store_errors_even_if_ignored`).",
)
def failure(tour: Tour) -> Evidence:
    promise = basic.failing.delay("as shown")
    return {
        "state": tour.backend.reaches(promise, "FAILURE"),
        "error": tour.backend.result(promise),
        "traceback": tour.backend.meta(promise, "traceback"),
    }


@states.step(
    "RETRY: it failed and will be tried again",
    shows=(basic.flaky,),
    covers=("RETRY",),
    expect={"state in between": "RETRY", "result": 2, "path": containing("retried", "succeeded")},
    learn="A retry is a new message with the same task id; in between the state is RETRY and the exception is stored.",
)
def retry(tour: Tour) -> Evidence:
    promise = basic.flaky.delay(1)
    return {
        "state in between": tour.backend.reaches(promise, "RETRY"),
        "result": tour.backend.result(promise),
        "path": tour.events.path(promise),
    }


@states.step(
    "REVOKED: revoked before it ran",
    covers=("REVOKED",),
    expect={"while it waits": "PENDING", "at the end": "REVOKED", "path": containing("sent", "revoked")},
    learn="A revoked task becomes REVOKED when a worker would have started it: here when it is due, after two seconds.",
)
def revoked(tour: Tour) -> Evidence:
    promise = basic.add.apply_async((1, 1), countdown=2)
    waiting = tour.backend.state(promise)
    promise.revoke()
    return {
        "while it waits": waiting,
        "at the end": tour.backend.reaches(promise, "REVOKED"),
        "path": tour.events.path(promise),
    }


progress = CONCEPT.lesson("progress", "A custom state: progress while it runs")


@progress.step(
    "update_state stores a state and its metadata",
    shows=(advanced.progress,),
    covers=("custom PROGRESS state",),
    expect={
        "state while it runs": "PROGRESS",
        "different steps seen": at_least(3),
        "in order": True,
        "result": {"done": 10, "steps": 10},
    },
    learn="Any name can be a state; callers poll the backend, so do not report more often than they poll.",
)
def update_state(tour: Tour) -> Evidence:
    promise = advanced.progress.delay(steps=10, seconds=2)
    state, steps = tour.backend.reaches(promise, "PROGRESS"), tour.progress(promise)
    return {
        "state while it runs": state,
        "different steps seen": steps.map(len),
        "in order": steps.map(lambda seen: seen == sorted(seen)),
        "result": tour.backend.result(promise),
    }


pending = CONCEPT.lesson("pending", "What PENDING does not mean")


@pending.step(
    "A task that was never sent is PENDING",
    covers=("an unknown id",),
    expect={"state of an unknown id": "PENDING", "stored in the backend": False},
    learn="PENDING means that the backend has no entry for this id; it does not mean that a task waits.",
)
def unknown(tour: Tour) -> Evidence:
    return {
        "state of an unknown id": tour.backend.state(app.AsyncResult("no-such-task")),
        "stored in the backend": tour.backend.stored("no-such-task"),
    }


@pending.step(
    "A task whose result is forgotten or ignored is PENDING, too",
    covers=("an unknown id",),
    expect={"before": "SUCCESS", "after forget": "PENDING"},
    learn="If you must know whether a task was ever sent, store that yourself: in a database row or a log.",
)
def forgotten(tour: Tour) -> Evidence:
    promise = basic.add.delay(1, 1)
    before = tour.backend.reaches(promise, "SUCCESS")
    promise.forget()
    return {"before": before, "after forget": tour.backend.state(promise)}
