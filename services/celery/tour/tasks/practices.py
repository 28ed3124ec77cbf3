"""Best practices and classic mistakes: each as a task that fails and one that works."""

import asyncio
import socket
import time
from typing import Annotated, Any

from pydantic import Field
from redis.client import Pipeline

from celery_app import Task, app, durable
from tasks.advanced import AwayError, die
from tasks.arguments import Name, Seconds, checked
from tasks.notes import KEPT_FOR, key, note

Amount = Annotated[int, Field(gt=0, le=1_000_000)]


def first_run(name: str) -> bool:
    """Whether this is the first call for this name: the tasks below are killed at their first run."""
    return bool(durable.store.set(key(f"{name}-first"), "1", nx=True, ex=KEPT_FOR))


# --- Idempotency ---


@app.task(ignore_result=False, default_retry_delay=1)
@checked
def deposit(account: Name, amount: Amount) -> None:
    """Adds to a balance, and again at each run."""
    durable.store.incrby(key(account), amount)
    if first_run(account):
        die()


@app.task(bind=True, ignore_result=False, default_retry_delay=1)
@checked
def deposit_once(self: Task, account: Name, amount: Amount) -> None:
    """Adds to a balance together with a marker, in one transaction: a second run finds the marker."""

    def effect(pipe: Pipeline) -> int:
        pipe.incrby(key(account), amount)
        return amount

    durable.once(key(self.request.id), effect, ttl=KEPT_FOR)
    if first_run(account):
        die()


# --- Atomicity ---


@app.task(ignore_result=False, max_retries=0)
@checked
def transfer_in_steps(source: Name, target: Name, amount: Amount) -> None:
    """Moves money in two steps; killed between them."""
    durable.store.decrby(key(source), amount)
    die()
    durable.store.incrby(key(target), amount)


@app.task(ignore_result=False, max_retries=0)
@checked
def transfer(source: Name, target: Name, amount: Amount) -> None:
    """Moves money in one step: Redis applies all of a transaction or nothing."""
    with durable.store.pipeline(transaction=True) as pipe:
        pipe.decrby(key(source), amount)
        pipe.incrby(key(target), amount)
        die()
        pipe.execute()


# --- Small tasks, small results ---


@app.task(ignore_result=False)
@checked
def work(name: Name, items: Annotated[int, Field(ge=1, le=1000)], seconds_each: Seconds) -> int:
    """Process items, each noted when it is done."""
    for _ in range(items):
        time.sleep(seconds_each)
        note(name, "item")
    return items


@app.task(ignore_result=False)
@checked
def report(size: Annotated[int, Field(ge=1, le=1_000_000)]) -> str:
    """A report of `size` characters, as the result."""
    return "x" * size


@app.task(ignore_result=False)
@checked
def report_kept(name: Name, size: Annotated[int, Field(ge=1, le=1_000_000)]) -> str:
    """The same report, stored elsewhere; the result is its key."""
    durable.store.set(key(name), "x" * size, ex=KEPT_FOR)
    return name


# --- Time-outs and retries ---


@app.task(ignore_result=False)
@checked
def listen(timeout: Annotated[float, Field(gt=0, le=10)] | None) -> str:
    """Wait for a peer that never sends: for ever, or up to `timeout`."""
    ours, _theirs = socket.socketpair()
    with ours, _theirs:
        ours.settimeout(timeout)
        return ours.recv(1).decode()


def _call(name: str) -> str:
    """A service that is unavailable while the key `tour:<name>` exists."""
    if durable.store.exists(key(name)):
        raise AwayError(f"{name} is unavailable")
    return "an answer"


@app.task(bind=True, ignore_result=False, max_retries=2)
@checked
def call_at_fixed_times(self: Task, name: Name) -> str:
    """Retries twice, each time after 1 s."""
    try:
        return _call(name)
    except AwayError as error:
        raise self.retry(exc=error, countdown=1) from error


@app.task(ignore_result=False, autoretry_for=(AwayError,), max_retries=2, retry_backoff=3, retry_jitter=False)
@checked
def call_with_backoff(name: Name) -> str:
    """Retries twice, after 3 s and after 6 s."""
    return _call(name)


# --- Classic mistakes ---


@app.task(bind=True, ignore_result=False)
@checked
def wait_for_another(self: Task, seconds: Annotated[float, Field(gt=0, le=10)]) -> Any:
    """Sends a task and waits for it, in the worker's only slot. Celery forbids that; the check is disabled here."""
    promise = app.tasks["tasks.basic.add"].apply_async((1, 1), queue=self.request.delivery_info["routing_key"])
    return promise.get(timeout=seconds, disable_sync_subtasks=False)


@app.task(ignore_result=False)
def wait_as_celery_likes() -> Any:
    """Sends a task and waits for it; Celery raises at `get`."""
    return app.tasks["tasks.basic.add"].delay(1, 1).get(timeout=1)


@app.task(ignore_result=False)
@checked
def read(name: Name) -> str:
    """The value of a key that the caller has written, or will write."""
    value = durable.store.get(key(name))
    if value is None:
        raise LookupError(f"there is no {name}")
    return str(value)


@app.task(ignore_result=False)
def print_label(address: str) -> str:
    """Prints the address in the message."""
    return f"to {address}"


@app.task(ignore_result=False)
@checked
def print_label_of(customer: Name) -> str:
    """Prints the customer's current address."""
    return f"to {durable.store.get(key(customer))}"


@app.task(ignore_result=False)
def greet(name: str, language: str) -> str:
    """Was `greet(name)` yesterday: older messages lack the new argument."""
    return {"en": "hello", "de": "hallo"}[language] + " " + name


@app.task(ignore_result=False)
def greet_compatibly(name: str, language: str = "en") -> str:
    """Was `greet_compatibly(name)` yesterday: the default of the new argument keeps the old behaviour."""
    return {"en": "hello", "de": "hallo"}[language] + " " + name


@app.task(ignore_result=False)
def unique(words: Any) -> Any:
    """The distinct words, as a set: works as a function, but is not JSON."""
    return set(words)


# --- Overlapping runs ---


@app.task(ignore_result=False)
@checked
def rebuild(name: Name, seconds: Seconds) -> str:
    """Rebuild something; a second run may begin before the first has ended."""
    note(name, "begun")
    time.sleep(seconds)
    return "rebuilt"


@app.task(ignore_result=False)
@checked
def rebuild_alone(name: Name, seconds: Seconds) -> str:
    """The same, unless another run holds the lock. Its TTL frees it if this run is killed: longer than any run."""
    lock = durable.store.lock(key(f"{name}-first"), timeout=60, blocking=False)
    if not lock.acquire():
        return "skipped: another run holds the lock"
    try:
        note(name, "begun")
        time.sleep(seconds)
        return "rebuilt"
    finally:
        lock.release()


# --- Async code ---


async def fetch(seconds: float) -> float:
    """Like a request with an async client."""
    await asyncio.sleep(seconds)
    return seconds


@app.task(ignore_result=False)
async def fetch_as_coroutine(seconds: float) -> float:
    """A task that is itself a coroutine: the worker calls it, and does not await it."""
    return await fetch(seconds)


@app.task(ignore_result=False)
@checked
def fetch_all(seconds: Seconds, times: Annotated[int, Field(ge=1, le=100)]) -> dict[str, float]:
    """Runs coroutines side by side in an event loop of its own, with a limit for all of them."""

    async def side_by_side() -> None:
        async with asyncio.timeout(30):
            await asyncio.gather(*(fetch(seconds) for _ in range(times)))

    begun = time.monotonic()
    asyncio.run(side_by_side())
    return {"waits in total": seconds * times, "seconds": time.monotonic() - begun}
