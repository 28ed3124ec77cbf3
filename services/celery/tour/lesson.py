"""Lessons: steps that run something on the live stack and return evidence of what happened (tour/evidence.py)."""

import inspect
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tour.evidence import Check, Evidence, equal

if TYPE_CHECKING:
    from tour.tour import Tour

APP = Path(__file__).parents[1]
LIBRARY = "celery_durable"


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
