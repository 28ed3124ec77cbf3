"""Canvas: tasks combined into workflows. Functions without a decorator build one; run it with `.delay()`."""

from collections.abc import Sequence
from typing import Any

from celery import chain, chord, group

from celery_app import app
from tasks.basic import add, check_number

MAX_MEMBERS = 100  # every member is in one message: larger work goes in chunks, as in tasks/search.py


@app.task(ignore_result=False)
def square(x: float) -> float:
    """The square of a number."""
    check_number("x", x, -1e7, 1e7)
    return x * x


@app.task(ignore_result=False)
def total(numbers: list[float]) -> float:
    """The sum of numbers: the callback of a chord."""
    return sum(numbers)


def add_then_square(x: float, y: float) -> Any:
    """A chain: (x + y)²; each task gets the result of the one before."""
    return chain(add.s(x, y), square.s())


def squares(numbers: Sequence[float]) -> Any:
    """A group: the squares of numbers, side by side."""
    if not 1 <= len(numbers) <= MAX_MEMBERS:
        raise ValueError(f"numbers: 1 to {MAX_MEMBERS} of them, got {len(numbers)}")
    return group(square.s(number) for number in numbers)


def sum_of_squares(numbers: Sequence[float]) -> Any:
    """A chord: squares side by side, then their sum once all are there."""
    return chord(squares(numbers), total.s())
