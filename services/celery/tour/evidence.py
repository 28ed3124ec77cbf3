"""Evidence of what happened, and conditions on it.

The evidence comes from an independent source (the backend, the broker, events …), never from the lesson: a value is a
`Seen`, created only by the modules of those sources, such as tour/sources.py.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")
U = TypeVar("U")


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
    return Check(f"contains {words}", lambda seen: all(part in seen for part in parts))


def starting(*items: object) -> Check:
    """A list that begins with these items."""
    return Check(f"begins with {', '.join(map(str, items))}", lambda seen: list(seen[: len(items)]) == list(items))


def matching(pattern: str, words: str) -> Check:
    """Text in which the regular expression is found; `words` say what that means."""
    return Check(words, lambda seen: re.search(pattern, seen) is not None)


def error(kind: str, text: str = "") -> Check:
    """An error of a class, whose message contains a text."""
    words = f"the error {kind}" + (f", which says: {text}" if text else "")
    return matching(rf"\b{kind}\b.*{re.escape(text)}", words)


def worker_of(queue: str) -> Check:
    """The node name of a worker of a queue."""
    return matching(f"^{queue}@", f"a worker of the queue {queue}")
