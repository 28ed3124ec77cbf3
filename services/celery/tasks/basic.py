"""Small tasks: a result, a failure, a retry, a pause, CPU load; and the attributes of a running task."""

import os
import time
from typing import Annotated, Any

from celery.utils.log import get_task_logger
from pydantic import BaseModel, Field

from celery_app import Task, app
from settings import DELIVERY
from tasks.arguments import Name, Number, Seconds, checked

logger = get_task_logger(__name__)

MAX_FAILURES = 5


@app.task(ignore_result=False)
@checked
def add(x: Number, y: Number) -> Number:
    """The sum of two numbers."""
    return x + y


@app.task(ignore_result=True)
@checked
def note(text: Annotated[str, Field(max_length=1000)]) -> str:
    """Write a line to the worker's log; its result is ignored."""
    logger.info("noted: %s", text)
    return text


@app.task(bind=True, ignore_result=False)
@checked
def whoami(self: Task) -> dict[str, Any]:
    """The attributes of a running task: `bind` passes the task as first argument, `self.request` is its message."""
    request = self.request
    return {
        "name": self.name,
        "id": request.id,
        "worker": request.hostname,
        "queue": request.delivery_info["routing_key"],
        "priority": request.delivery_info["priority"],
        "retries": request.retries,
        "pid": os.getpid(),
    }


@app.task(name="greetings.hello", ignore_result=False)
@checked
def hello(name: Name) -> str:
    """A task with an explicit name: callers need no change when its code moves to another module."""
    return f"hello {name}"


class Order(BaseModel):
    """An order, as it is sent in a message."""

    item: str
    quantity: int = Field(gt=0, le=1000)
    price: float = Field(gt=0)


class Receipt(BaseModel):
    """The cost of an order."""

    item: str
    total: float


@app.task(pydantic=True, ignore_result=False)
def buy(order: Order) -> Receipt:
    """Celery converts the message's JSON to an Order, and the Receipt to JSON."""
    return Receipt(item=order.item, total=order.quantity * order.price)


@app.task(ignore_result=False)
@checked
def buy_checked(order: Annotated[Order, Field(strict=False)]) -> dict[str, Any]:
    """The same, with an error that names what is wrong: pydantic's own error cannot be stored as JSON."""
    return Receipt(item=order.item, total=order.quantity * order.price).model_dump()


@app.task(ignore_result=False)
def echo(value: Any) -> dict[str, Any]:
    """A value as received, and its type."""
    return {"value": value, "kind": type(value).__name__}


class FlakyError(Exception):
    """A temporary failure, which a retry may resolve."""


@app.task(
    bind=True,
    ignore_result=False,
    autoretry_for=(FlakyError,),
    max_retries=MAX_FAILURES,
    retry_backoff=1,  # s: 1, 2, 4 …
    retry_backoff_max=DELIVERY.max_delay,
    retry_jitter=True,  # a random part of it, so that tasks that failed together are not retried together
)
@checked
def flaky(self: Task, failures: Annotated[int, Field(ge=0, le=MAX_FAILURES)] = 1) -> int:
    """Fail so many times, then succeed. Returns how often it was tried."""
    if self.request.retries < failures:
        raise FlakyError(f"failure {self.request.retries + 1} of {failures}")
    return int(self.request.retries) + 1


@app.task(ignore_result=False)
@checked
def failing(reason: Annotated[str, Field(max_length=200)] = "on purpose") -> None:
    """Always fail."""
    raise RuntimeError(f"this task always fails: {reason}")


@app.task(ignore_result=False)
@checked
def sleep(seconds: Seconds) -> float:
    """Sleep, like a task that waits for an external service."""
    time.sleep(seconds)
    return seconds


@app.task(ignore_result=False)
@checked
def spin(milliseconds: Annotated[int | float, Field(ge=0, le=45_000)]) -> int:
    """Use a CPU for `milliseconds`. Returns the number of iterations."""
    end, rounds = time.thread_time() + milliseconds / 1000, 0
    while time.thread_time() < end:
        rounds += 1
    return rounds
