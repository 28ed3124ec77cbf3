"""Lessons: steps that run something on the live stack and return evidence of what happened (tour/evidence.py)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tour.code import calls_of, source_of
from tour.evidence import Check, Evidence, equal

if TYPE_CHECKING:
    from tour.tour import Tour


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
        """(file in the project, source) of all that is shown; the step's own calls are the last, if it has any."""
        code = [*(source_of(shown) for shown in self.shows), calls_of(self.run)]
        return [(file, text) for file, text in code if text]


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
