"""Lessons: steps that run something on the live stack and return evidence of what happened.

A step lists what must be seen. The evidence comes from an independent source (the backend, the broker, events …), never
from the lesson: a value is a `Seen`, created only by the modules of those sources, such as tour/sources.py.
"""

import inspect
import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from tour.tour import Tour

T = TypeVar("T")
U = TypeVar("U")

APP = Path(__file__).parents[1]
LIBRARY = "celery_durable"


@dataclass(frozen=True)
class Seen(Generic[T]):
    """A value and its source."""

    value: T
    source: str

    def map(self, function: Callable[[T], U]) -> "Seen[U]":
        """The result of a function of the value, with the same source."""
        return Seen(function(self.value), self.source)


def both(first: Seen[T], second: Seen[U]) -> Seen[tuple[T, U]]:
    """Two values as one, for `map`."""
    sources = dict.fromkeys([*first.source.split(", "), *second.source.split(", ")])
    return Seen((first.value, second.value), ", ".join(sources))


Evidence = Mapping[str, Seen[Any]]


# --- What must be seen ---


@dataclass(frozen=True)
class Check:
    """A condition on a value, in words and as a function. `exact`: the words are the only value for which it holds."""

    words: str
    holds: Callable[[Any], bool]
    exact: bool = False


def equal(value: object) -> Check:
    """Exactly this value. `Lesson.step` applies it to plain values."""
    return Check(repr(value), lambda seen: type(seen) is type(value) and bool(seen == value), exact=True)


def between(low: float, high: float, unit: str = "") -> Check:
    """From `low` to `high`."""
    return Check(f"{low:g} to {high:g}{unit and ' ' + unit}", lambda seen: low <= seen <= high)


def at_least(low: float, unit: str = "") -> Check:
    """`low` or more."""
    return Check(f"at least {low:g}{unit and ' ' + unit}", lambda seen: seen >= low)


def at_most(high: float, unit: str = "") -> Check:
    """`high` or less."""
    return Check(f"at most {high:g}{unit and ' ' + unit}", lambda seen: seen <= high)


def containing(*parts: object) -> Check:
    """It contains each of the parts."""
    words = ", ".join(part if isinstance(part, str) else repr(part) for part in parts)
    return Check(f"has {words}", lambda seen: all(part in seen for part in parts))


def starting(*items: object) -> Check:
    """A list that begins with these items."""
    return Check(f"begins with {list(items)!r}", lambda seen: list(seen[: len(items)]) == list(items))


def matching(pattern: str) -> Check:
    """Text in which the regular expression is found."""
    return Check(f"matches `{pattern}`", lambda seen: re.search(pattern, seen) is not None)


# --- Steps, lessons, concepts ---


@dataclass(frozen=True)
class Step:
    """A step: a function that runs something, and what must be seen then."""

    title: str
    run: Callable[["Tour"], Evidence]
    expect: Mapping[str, Check]
    learn: str  # one sentence: what the step teaches
    covers: tuple[str, ...]  # topics of the table in tests/unit/test_tour.py
    shows: tuple[Any, ...]  # tasks, functions and classes whose source is shown

    @property
    def code(self) -> list[tuple[str, str]]:
        """(file in the project, source) of all that is shown; the step's own body is the last."""
        return [*(source_of(shown) for shown in self.shows), body_of(self.run)]


@dataclass(frozen=True)
class Lesson:
    """Steps under one name, which `make tour LESSON=name` runs."""

    name: str
    title: str
    concept: str
    steps: list[Step] = field(default_factory=list)

    def step(
        self,
        title: str,
        *,
        expect: Mapping[str, object],
        learn: str,
        covers: tuple[str, ...] = (),
        shows: tuple[Any, ...] = (),
    ) -> Callable[[Callable[["Tour"], Evidence]], Callable[["Tour"], Evidence]]:
        """Add the decorated function as a step."""
        checks = {name: check if isinstance(check, Check) else equal(check) for name, check in expect.items()}

        def decorate(function: Callable[["Tour"], Evidence]) -> Callable[["Tour"], Evidence]:
            self.steps.append(Step(title, function, checks, learn, covers, shows))
            return function

        return decorate


@dataclass(frozen=True)
class Concept:
    """A page of lessons."""

    title: str
    page: str  # docs/lessons/<page>.md
    intro: str
    lessons: list[Lesson] = field(default_factory=list)

    def lesson(self, name: str, title: str) -> Lesson:
        """A new lesson of this concept."""
        lesson = Lesson(name, title, self.title)
        self.lessons.append(lesson)
        return lesson


def _in_project(shown: Any) -> str:
    """The path in the project of an object's source; the library is installed from packages/celery-durable."""
    file = Path(inspect.getfile(shown)).resolve()
    if LIBRARY in file.parts:
        return "packages/celery-durable/src/" + "/".join(file.parts[file.parts.index(LIBRARY) :])
    return f"services/celery/{file.relative_to(APP)}"


def source_of(shown: Any) -> tuple[str, str]:
    """File and source of a task with its decorators, a function or a class."""
    function = shown
    if not inspect.isclass(shown):
        function = inspect.unwrap(getattr(shown, "_orig_run", None) or getattr(shown, "run", shown))
        function = getattr(function, "__func__", function)
    return _in_project(function), textwrap.dedent(inspect.getsource(function)).rstrip()


def body_of(function: Any) -> tuple[str, str]:
    """File and source of a step's body, without decorator and signature."""
    lines = inspect.getsource(function).splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("def "))
    return _in_project(function), textwrap.dedent("\n".join(lines[start + 1 :])).strip()
