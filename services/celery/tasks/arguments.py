"""Checks arguments before a task runs: a wrong one fails at once, with a clear error, and is not retried."""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Annotated, ParamSpec, TypeVar

from pydantic import ConfigDict, Field, ValidationError, validate_call

P = ParamSpec("P")
R = TypeVar("R")

Number = Annotated[int | float, Field(ge=-1e15, le=1e15, allow_inf_nan=False)]
Seconds = Annotated[int | float, Field(ge=0, le=45)]  # below the soft time limit
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[\w.@-]+$")]


class ArgumentError(ValueError):
    """A task was called with invalid arguments; a retry would fail, too."""


def checked(run: Callable[P, R]) -> Callable[P, R]:
    """Check a task's arguments against its annotations, as pydantic's strict validate_call does; goes below @app.task.

    The task raises ArgumentError, one line that names each wrong argument. Our Task class never retries it.
    """
    validated = validate_call(config=ConfigDict(strict=True, arbitrary_types_allowed=True))(run)
    names = list(inspect.signature(run).parameters)

    @functools.wraps(run)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return validated(*args, **kwargs)
        except ValidationError as error:
            if error.title != validated.__qualname__:
                raise  # from inside the task
            raise ArgumentError("; ".join(_describe(error, names))) from None

    call.__signature__ = inspect.signature(run)  # type: ignore[attr-defined] # Celery checks calls against it
    return call


def _describe(error: ValidationError, names: list[str]) -> Iterable[str]:
    lines = {}
    for each in error.errors():
        first, *rest = each["loc"]
        where = names[first] if isinstance(first, int) and first < len(names) else first
        path = ".".join(map(str, [where, *(part for part in rest if part not in ("int", "float"))]))
        value = "" if each["type"].endswith(("_argument", "_values")) else f"; it is {each['input']!r:.80}"
        lines[path] = f"{path}: {each['msg'].removeprefix('Input ')}{value}"
    return lines.values()
