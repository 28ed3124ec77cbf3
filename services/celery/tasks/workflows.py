"""Canvas: tasks combined into workflows. Functions without a decorator build one; run it with `.delay()`."""

from collections.abc import Sequence
from typing import Annotated, Any

from celery import chain, chord, group
from celery.canvas import StampingVisitor
from pydantic import Field

from celery_app import Task, app
from tasks.arguments import Name, Number, checked
from tasks.basic import add
from tasks.notes import note

MAX_MEMBERS = 100  # every member is in one message: more must be split into chunks, as in tasks/search.py


@app.task(ignore_result=False)
@checked
def square(x: Annotated[int | float, Field(ge=-1e7, le=1e7, allow_inf_nan=False)]) -> Number:
    """The square of a number."""
    return x * x


@app.task(ignore_result=False)
@checked
def total(numbers: list[Number]) -> Number:
    """The sum of numbers: the callback of a chord."""
    return sum(numbers)


@app.task(ignore_result=False)
@checked
def squared_each(numbers: list[Number], plus: Number = 0) -> list[Number]:
    """Each number squared, plus something."""
    return [number * number + plus for number in numbers]


@app.task(bind=True, ignore_result=False)
@checked
def power(self: Task, x: Number, exponent: Annotated[int, Field(ge=1, le=10)]) -> Number:
    """x to the power of `exponent`, by replacing itself with a workflow that multiplies."""
    if exponent == 1:
        return x
    raise self.replace(chain(power.s(x, exponent - 1), times.s(x)))


@app.task(ignore_result=False)
@checked
def times(x: Number, y: Number) -> Number:
    """The product of two numbers."""
    return x * y


@app.task
def note_failure(request: Any, error: Exception, traceback: Any, name: Name) -> None:
    """An error callback: notes which task failed and how. It runs in the worker of the failed task."""
    note(name, f"{request.task}: {error}")


def add_then_square(x: float, y: float) -> Any:
    """A chain: (x + y)²; each task gets the result of the one before."""
    return chain(add.s(x, y), square.s())


def squares(numbers: Sequence[float]) -> Any:
    """A group: the squares of numbers, in parallel."""
    if not 1 <= len(numbers) <= MAX_MEMBERS:
        raise ValueError(f"numbers: 1 to {MAX_MEMBERS} of them, got {len(numbers)}")
    return group(square.s(number) for number in numbers)


def sum_of_squares(numbers: Sequence[float]) -> Any:
    """A chord: squares in parallel, then their sum."""
    return chord(squares(numbers), total.s())


class OrderStamp(StampingVisitor):
    """Stamps every task of a workflow with the id of its order."""

    def __init__(self, order: str) -> None:
        self.order = order

    def on_signature(self, sig: Any, **headers: Any) -> dict[str, Any]:
        return {"order": self.order, "stamped_headers": ["order"]}
