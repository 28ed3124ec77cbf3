"""How tasks are called, from the simplest call to a workflow: read it from top to bottom.

`make client` runs it on the running stack (`python client.py` in the client container), and prints the result of each
call. `make tour` shows the rest of Celery in lessons.
"""

from datetime import UTC, datetime, timedelta

from celery import chain, chord, group
from celery.exceptions import TimeoutError as ResultTimeoutError

from celery_app import app
from tasks import advanced, basic, search, workflows

WAIT = 30  # s for a result; without a timeout a program waits for ever if there is no worker


def show(call: str, result: object) -> None:
    """Print a call and its result."""
    print(f"{call:<34} {result}")


def main() -> None:
    """The examples."""
    # --- A call ---

    # `delay` publishes a message and returns at once; a worker runs the task. `get` waits for its return value.
    promise = basic.add.delay(2, 3)
    show("add.delay(2, 3)", promise.get(timeout=WAIT))

    # The promise has the task's id, with which any other program can read its state and result.
    again = app.AsyncResult(promise.id)
    show("the same by its id", f"{again.state} {again.result}")

    # Called as a function it runs in this process, without a worker.
    show("add(2, 3)", basic.add(2, 3))

    # --- Options of a call ---

    # `apply_async` takes the arguments as a tuple, and options: a priority (0 is the most urgent), a queue, an expiry.
    promise = basic.whoami.apply_async(priority=1, queue="high")
    me = promise.get(timeout=WAIT)
    show("whoami, priority 1, queue high", f"ran on {me['worker']} with priority {me['priority']}")

    # In two seconds, or at a given time, also in days: it waits in Redis.
    asked = datetime.now(UTC)
    basic.add.apply_async((1, 1), countdown=2).get(timeout=WAIT)
    show("add in 2 s", f"{(datetime.now(UTC) - asked).total_seconds():.1f} s later")
    basic.add.apply_async((1, 1), eta=datetime.now(UTC) + timedelta(seconds=1)).get(timeout=WAIT)

    # A task that must run in spite of any fault has `outbox=True` in its definition (docs/delivery.md).

    # --- What can go wrong ---

    # A task that raises: `get` raises its error here.
    try:
        basic.failing.delay("for this example").get(timeout=WAIT)
    except RuntimeError as error:
        show("failing.delay(…).get()", error)

    # A task that fails at first and is retried automatically.
    show("flaky.delay(failures=1)", f"try {basic.flaky.delay(failures=1).get(timeout=WAIT)} succeeded")

    # A task with wrong arguments fails without a retry.
    try:
        basic.add.delay("two", 3).get(timeout=WAIT)
    except ValueError as error:
        show('add.delay("two", 3)', error)

    # The timeout ends the wait; the task continues.
    try:
        basic.sleep.delay(2).get(timeout=0.5)
    except ResultTimeoutError:
        show("sleep.delay(2).get(timeout=0.5)", "not done yet")

    # --- A task that reports ---

    promise = advanced.progress.delay(steps=4, seconds=1)
    show("progress.delay(steps=4)", promise.get(timeout=WAIT))

    # --- Workflows: a signature describes a call that is made later ---

    total = chain(basic.add.s(1, 2), workflows.square.s())  # each task gets the result of the one before
    show("chain: (1 + 2)²", total.delay().get(timeout=WAIT))
    squares = group(workflows.square.s(number) for number in range(4))  # in parallel
    show("group: squares of 0 to 3", squares.delay().get(timeout=WAIT))
    summed = chord(squares, workflows.total.s())  # then one task with all their results
    show("chord: their sum", summed.delay().get(timeout=WAIT))

    # --- The demo's own job ---

    answer = search.search.delay("import").get(timeout=WAIT)
    if answer["generation"] is None:
        found = "there is no index yet: beat starts indexing every minute"
    else:
        best = answer["best"][0]["name"] if answer["best"] else "none"
        found = f"{answer['occurrences']} times in {answer['documents']} documents, most often in {best}"
    show('search.delay("import")', found)


if __name__ == "__main__":
    main()
