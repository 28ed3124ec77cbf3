"""Errors and retries."""

from collections import Counter

from tasks import advanced, workflows
from tour.evidence import Evidence, at_least, at_most, between, containing, error
from tour.lesson import Concept
from tour.processes import SOON
from tour.tour import Tour

CONCEPT = Concept(
    "Errors and retries",
    "errors",
    "A task fails when it raises. Its options decide what happens to its message then.",
)

retries = CONCEPT.lesson("autoretry", "Automatic retries with growing delays")


@retries.step(
    "autoretry_for with backoff: 1 s, then 2, never more than the maximum",
    shows=(advanced.AwayError, advanced.ask),
    covers=("autoretry_for", "backoff", "backoff_max", "max_retries"),
    expect={
        "result": "an answer",
        "first delay": at_most(1, "s"),
        "second delay": between(1, 2, "s"),
        "third delay": between(1, 2, "s"),
    },
    learn="Delays grow from try to try up to `retry_backoff_max`, so that an overloaded service can recover.",
)
def backoff(tour: Tour) -> Evidence:
    promise = advanced.ask.delay(tour.name("service"), failures=3)
    sent = tour.events.wait("sent", of=[promise], count=4)
    return {
        "result": tour.backend.result(promise),
        "first delay": sent.map(lambda tries: tour.delay(tries[1])),
        "second delay": sent.map(lambda tries: tour.delay(tries[2])),
        "third delay": sent.map(lambda tries: tour.delay(tries[3])),
    }


@retries.step(
    "Jitter: tasks that failed together are not retried together",
    shows=(advanced.ask_with_jitter,),
    covers=("jitter",),
    expect={"tasks retried": 12, "different seconds in which they ended": at_least(2)},
    learn="Without jitter all tasks that failed at the same time are retried at the same time.",
)
def jitter(tour: Tour) -> Evidence:
    promises = [advanced.ask_with_jitter.delay(tour.name(f"service-{number}")) for number in range(12)]
    done = tour.events.wait("succeeded", of=promises, count=12)
    begun = tour.events.wait("retried", of=promises, count=12).value[0]
    return {
        "tasks retried": done.map(len),
        "different seconds in which they ended": done.map(
            lambda events: len({round(tour.elapsed(begun, e)) for e in events})
        ),
    }


@retries.step(
    "dont_autoretry_for: errors that are not retried",
    shows=(advanced.GoneError,),
    covers=("dont_autoretry_for",),
    expect={"path": ["sent", "received", "started", "failed"], "error": error("GoneError")},
    learn="Retry transient errors only; wrong arguments, for example, are not one.",
)
def dont(tour: Tour) -> Evidence:
    promise = advanced.ask.delay("service", gone=True)
    return {"path": tour.events.path(promise), "error": tour.backend.result(promise)}


by_hand = CONCEPT.lesson("manual-retry", "Retrying from inside the task")


@by_hand.step(
    "self.retry raises: the task is sent again, until max_retries",
    shows=(advanced.ask_by_hand,),
    covers=("manual retry with countdown", "max_retries"),
    expect={
        "tries": 2,
        "what happened": {"sent": 2, "received": 2, "started": 2, "retried": 1, "rejected": 1, "failed": 1},
        "error at last": error("AwayError", "does not answer"),
    },
    learn="When the retries are exhausted the task fails with the error passed to `retry`; here its message "
    "becomes a dead letter: `make dlq`.",
)
def retry(tour: Tour) -> Evidence:
    name = tour.name("service")
    promise = advanced.ask_by_hand.delay(name)
    return {
        "tries": tour.noted(name, 2).map(len),
        "what happened": tour.events.path(promise).map(lambda path: dict(Counter(path))),
        "error at last": tour.backend.result(promise),
    }


messages = CONCEPT.lesson("reject-ignore", "Reject and Ignore")


@messages.step(
    "Ignore: the worker stores no state",
    shows=(advanced.skip,),
    covers=("Ignore",),
    expect={"state": "SKIPPED"},
    learn="Raise Ignore when the task has stored its own state; its message is acknowledged.",
)
def ignore(tour: Tour) -> Evidence:
    promise = advanced.skip.delay()
    return {"state": tour.backend.reaches(promise, "SKIPPED")}


@messages.step(
    "Reject: the message is refused",
    shows=(advanced.refuse,),
    covers=("Reject",),
    expect={"state": "FAILURE", "error": error("Reject"), "left in the queue": 0, "not acknowledged": 0},
    learn="Reject without requeue removes the message, here to the dead letters (`make dlq`); "
    "with `requeue=True` it returns to its queue.",
)
def reject(tour: Tour) -> Evidence:
    worker = tour.worker("--concurrency=1")
    promise = advanced.refuse.apply_async(queue=worker.queue)
    return {
        "state": tour.backend.reaches(promise, "FAILURE"),
        "error": tour.backend.result(promise),
        "left in the queue": tour.broker.waiting(worker.queue),
        "not acknowledged": tour.broker.unacknowledged(worker.queue, 0),
    }


acks = CONCEPT.lesson("acks-late", "What happens to a task whose process is killed")


@acks.step(
    "Acknowledged early it is lost, acknowledged late it runs again, up to max_retries",
    shows=(advanced.die, advanced.die_acked_early, advanced.die_acked_late, advanced.poison),
    covers=("acks_late", "task_retry_on_worker_lost", "max_retries"),
    expect={
        "early: runs": 1,
        "early: ends as": error("WorkerLostError"),
        "late: runs": 2,
        "late: ends as": "done",
        "poison: runs": 2,
        "poison: ends as": error("WorkerLostError"),
    },
    learn="By default Celery acknowledges before the run, and the task of a killed process is lost; with acks_late it "
    "runs again, so it must be idempotent.",
)
def process_killed(tour: Tour) -> Evidence:
    worker, early, late, bad = (
        tour.worker("--concurrency=3"),
        tour.name("early"),
        tour.name("late"),
        tour.name("poison"),
    )
    died = advanced.die_acked_early.apply_async((early,), queue=worker.queue)
    survived = advanced.die_acked_late.apply_async((late,), queue=worker.queue)
    poison = advanced.poison.apply_async((bad,), queue=worker.queue)
    return {
        "early: ends as": tour.backend.result(died),
        "early: runs": tour.noted(early).map(len),
        "late: ends as": tour.backend.result(survived),
        "late: runs": tour.noted(late).map(len),
        "poison: ends as": tour.backend.result(poison),
        "poison: runs": tour.noted(bad).map(len),
    }


@acks.step(
    "The whole worker is killed: another gets the message when its lease ends",
    shows=(advanced.take_long,),
    covers=("acks_late",),
    expect={"left in Redis by the killed one": 1, "result": "run 2", "runs": 2},
    learn="A worker renews the leases of what it holds; a killed one's end after 15 s, in this lesson 5. kombu's own "
    "transport waits for an hour.",
)
def killed(tour: Tour) -> Evidence:
    queue, name = tour.queue(), tour.name("long")
    first = tour.worker("--concurrency=1", queue=queue, delivery=SOON)
    promise = advanced.take_long.apply_async((name, 1), queue=queue)
    tour.noted(name, 1)
    first.kill()
    left = tour.broker.unacknowledged(queue, 1)
    tour.worker("--concurrency=1", queue=queue, delivery=SOON, again=True)
    return {
        "left in Redis by the killed one": left,
        "result": tour.backend.result(promise),
        "runs": tour.noted(name).map(len),
    }


hooks = CONCEPT.lesson("failure-hooks", "Handling a failure with hooks and callbacks")


@hooks.step(
    "on_failure of the task, an error callback of the call",
    shows=(advanced.HookedTask, workflows.note_failure),
    covers=("on_failure", "error callbacks"),
    expect={
        "noted by on_failure": containing("on_failure ZeroDivisionError"),
        "noted by the callback": ["tasks.advanced.divide: division by zero"],
    },
    learn="The hook belongs to the task and runs for each failure; the callback belongs to one call of it.",
)
def told(tour: Tour) -> Evidence:
    name, callback = tour.name("hook"), tour.name("callback")
    advanced.divide.apply_async((name, 1, 0), link_error=workflows.note_failure.s(callback))
    return {"noted by on_failure": tour.noted(name, 3), "noted by the callback": tour.noted(callback, 1)}
