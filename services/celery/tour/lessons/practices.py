"""Best practices: each with the failure first, then the solution."""

from celery.result import AsyncResult

from tasks.notes import KEPT_FOR, key
from tour.evidence import Evidence, Seen, at_least, at_most, between, both, error
from tour.lesson import Concept
from tour.tasks import practices
from tour.tour import Tour

CONCEPT = Concept(
    "Best practices",
    "practices",
    "Each lesson shows the failure first, then the solution.",
)


def _number(tour: Tour, name: str) -> Seen[int]:
    return tour.redis("GET", key(name)).map(lambda text: int(text or 0))


idempotency = CONCEPT.lesson("idempotency", "Run twice, applied once")


@idempotency.step(
    "A task is killed after its effect, and runs again",
    shows=(practices.deposit, practices.deposit_once),
    covers=("idempotency: failure", "idempotency: solution"),
    expect={
        "deposit of 100, plain": 200,
        "deposit of 100, with its marker": 100,
        "both ended as": ["SUCCESS", "SUCCESS"],
    },
    learn="At least once means sometimes twice: write the effect together with a marker in one transaction, and "
    "check the marker first.",
)
def twice(tour: Tour) -> Evidence:
    worker, plain, marked = tour.worker("--concurrency=2"), tour.name("plain"), tour.name("marked")
    promises = [
        practices.deposit.apply_async((plain, 100), queue=worker.queue),
        practices.deposit_once.apply_async((marked, 100), queue=worker.queue),
    ]
    states = [tour.backend.meta(promise, "status") for promise in promises]
    return {
        "deposit of 100, plain": _number(tour, plain),
        "deposit of 100, with its marker": _number(tour, marked),
        "both ended as": states[0].map(lambda _: [state.value for state in states]),
    }


atomicity = CONCEPT.lesson("atomicity", "All of it or nothing")


@atomicity.step(
    "A task is killed between two steps",
    shows=(practices.transfer_in_steps, practices.transfer),
    covers=("atomicity: failure", "atomicity: solution"),
    expect={"100 moved in two steps, left in total": 60, "in one transaction, left in total": 100},
    learn="Write what belongs together in one transaction, of Redis or of your database, at the end of the task.",
)
def halfway(tour: Tour) -> Evidence:
    worker = tour.worker("--concurrency=2")
    left = {}
    promises = []
    for name, task in (("steps", practices.transfer_in_steps), ("transaction", practices.transfer)):
        accounts = left[name] = [tour.name("from"), tour.name("to")]
        tour.redis("SET", key(accounts[0]), 100, "EX", KEPT_FOR)
        promises.append(task.apply_async((*accounts, 40), queue=worker.queue))
    for promise in promises:
        tour.backend.meta(promise, "status")
    return {
        "100 moved in two steps, left in total": both(*(_number(tour, name) for name in left["steps"])).map(sum),
        "in one transaction, left in total": both(*(_number(tour, name) for name in left["transaction"])).map(sum),
    }


small = CONCEPT.lesson("small-tasks", "One large task against many small ones")


@small.step(
    "The same 40 items, on two slots",
    shows=(practices.work,),
    covers=("small tasks: failure", "small tasks: solution"),
    expect={"slots that one task of 40 items uses": 1, "slots that 40 tasks of one use": 2},
    learn="Small tasks use every slot, and little is lost when one is killed; but if they are too small, the messages "
    "cost more than the tasks.",
)
def measured(tour: Tour) -> Evidence:
    worker, name = tour.worker("--concurrency=2"), tour.name("items")

    def used(tasks: int, items: int) -> Seen[int]:
        promises = [practices.work.apply_async((name, items, 0.05), queue=worker.queue) for _ in range(tasks)]
        events = tour.events.wait("started", "succeeded", of=promises, count=2 * tasks)
        return events.map(tour.at_once)

    return {"slots that one task of 40 items uses": used(1, 40), "slots that 40 tasks of one use": used(40, 1)}


sparing = CONCEPT.lesson("sparing-results", "Small results: a key instead of the data")


@sparing.step(
    "A report as the result, or its key as the result",
    shows=(practices.report, practices.report_kept),
    covers=("results sparingly: failure", "results sparingly: solution"),
    expect={"stored for the report": at_least(100_000, "bytes"), "stored for its key": at_most(1_000, "bytes")},
    learn="A result is copied to the backend and to each caller; with a key only those that need the data read it.",
)
def copies(tour: Tour) -> Evidence:
    whole, kept = practices.report.delay(100_000), practices.report_kept.delay(tour.name("report"), 100_000)
    for promise in (whole, kept):
        tour.backend.reaches(promise, "SUCCESS")
    return {
        "stored for the report": tour.redis("STRLEN", f"celery-task-meta-{whole.id}"),
        "stored for its key": tour.redis("STRLEN", f"celery-task-meta-{kept.id}"),
    }


patience = CONCEPT.lesson("time-outs", "Time-outs for everything that a task waits for")


@patience.step(
    "A service never answers",
    shows=(practices.listen,),
    covers=("time-outs: failure", "time-outs: solution"),
    expect={
        "without: ends as": error("SoftTimeLimitExceeded"),
        "without: a slot is held for": at_least(1.9, "s"),
        "with: ends as": error("TimeoutError"),
        "with: a slot is held for a shorter time": True,
    },
    learn="Each wait for another service needs its own time-out; the task's time limit is the last resort, and until "
    "then it blocks a slot.",
)
def hang(tour: Tour) -> Evidence:
    without = practices.listen.apply_async((None,), soft_time_limit=2)
    limited = practices.listen.apply_async((0.2,), soft_time_limit=2)

    def held(promise: AsyncResult) -> Seen[float]:
        events = tour.events.wait("started", "failed", of=[promise], count=2)
        return events.map(lambda found: tour.elapsed(found[0], found[-1]))

    long, short = held(without), held(limited)
    return {
        "without: ends as": tour.backend.result(without),
        "without: a slot is held for": long,
        "with: ends as": tour.backend.result(limited),
        "with: a slot is held for a shorter time": both(short, long).map(lambda seconds: seconds[0] < seconds[1]),
    }


backoff = CONCEPT.lesson("retry-backoff", "Retries with backoff")


@backoff.step(
    "A service is unavailable until the first of two tasks has given up; both try three times",
    shows=(practices.call_at_fixed_times, practices.call_with_backoff),
    covers=("retries with backoff: failure", "retries with backoff: solution"),
    expect={"each second": error("AwayError"), "after 3 s and 6 s": "an answer"},
    learn="With the same number of tries, backoff covers a longer outage than fixed delays.",
)
def outage(tour: Tour) -> Evidence:
    service = tour.name("service")
    tour.redis("SET", key(service), "away", "EX", KEPT_FOR)
    fixed, growing = practices.call_at_fixed_times.delay(service), practices.call_with_backoff.delay(service)
    given_up = tour.backend.result(fixed)
    tour.redis("UNLINK", key(service))  # the service is available again
    return {"each second": given_up, "after 3 s and 6 s": tour.backend.result(growing)}


alone = CONCEPT.lesson("no-overlap", "Runs that must not overlap")


@alone.step(
    "A second run begins while the first one is running",
    shows=(practices.rebuild, practices.rebuild_alone),
    covers=("no overlapping runs: failure", "no overlapping runs: solution"),
    expect={
        "without a lock": ["rebuilt", "rebuilt"],
        "with a lock": ["rebuilt", "skipped: another run holds the lock"],
        "runs with a lock": 1,
        "the lock while it ran": between(1, 60, "s TTL"),
    },
    learn="A lock with a TTL lets one run work, and ends if that run is killed. It can end too early: apply effects "
    "with `once`.",
)
def overlapping(tour: Tour) -> Evidence:
    worker, plain, locked = tour.worker("--concurrency=2"), tour.name("plain"), tour.name("locked")
    twice = [practices.rebuild.apply_async((plain, 0.5), queue=worker.queue) for _ in range(2)]
    without = [tour.backend.result(promise) for promise in twice]
    first = practices.rebuild_alone.apply_async((locked, 5), queue=worker.queue)
    tour.noted(locked, 1)
    ttl = tour.redis("TTL", key(f"{locked}-first"))
    second = practices.rebuild_alone.apply_async((locked, 5), queue=worker.queue)
    skipped, done = tour.backend.result(second), tour.backend.result(first)
    return {
        "without a lock": both(*without).map(list),
        "with a lock": both(done, skipped).map(list),
        "runs with a lock": tour.noted(locked).map(len),
        "the lock while it ran": ttl,
    }
