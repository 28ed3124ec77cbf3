"""Tables of a run, in Markdown, from its results.json."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from statistics import median
from textwrap import fill
from typing import Any

TIMES = "\N{MULTIPLICATION SIGN}"
HELP = f"""Each line has the median of the rounds, and their range. {TIMES} is the ratio to stock Celery
with the same pool, or to the first line where that was not measured: the
median of the ratios in each round."""


@dataclass(frozen=True)
class Column:
    """A value of the samples of a measurement."""

    key: str
    title: str
    digits: int = 0
    compared: bool = True  # with its ratio to the baseline
    range: bool = False

    def show(self, value: float) -> str:
        return f"{value:.{self.digits}f}"


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A wanted ratio between two contenders of one run; without `over`, a wanted value."""

    measurement: str
    column: str
    contender: str
    over: str = ""
    least: float | None = None
    most: float | None = None


@dataclass(frozen=True)
class Measured:
    """The samples of a measurement, by contender: one each round."""

    title: str
    columns: tuple[Column, ...]
    samples: dict[str, list[dict[str, float]]]
    failures: dict[str, str]

    @classmethod
    def of(cls, results: dict[str, Any], name: str) -> "Measured":
        """From the content of results.json."""
        module = import_module(f"bench.measurements.{name}")
        return cls(module.TITLE, module.COLUMNS, results["samples"][name], results["failures"][name])

    def values(self, contender: str, key: str) -> list[float]:
        """One each round."""
        return [sample[key] for sample in self.samples[contender]]

    def ratio(self, contender: str, over: str, key: str) -> float:
        """The median of the rounds' ratios."""
        pairs = zip(self.values(contender, key), self.values(over, key), strict=True)
        return median(own / other for own, other in pairs)

    def baseline(self, contender: str) -> str:
        """See HELP."""
        same = f"stock {contender.split()[-1]}"
        return same if same in self.samples else next(iter(self.samples))


def render(results: dict[str, Any], goals: Iterable[Goal], images: str = "") -> str:
    """All tables. `images`: the folder of the plots, for a page that shows them."""
    measured = {name: Measured.of(results, name) for name in results["samples"]}
    parts = [HELP, *_warning(results["conditions"])]
    for name, each in measured.items():
        parts += [f"### {each.title}", _table(["", *_heads(each)], (_cells(each, row) for row in each.samples))]
        parts += [f"{contender} failed: {reason.splitlines()[0]}" for contender, reason in each.failures.items()]
        if images:
            parts.append(f"![{each.title}]({images}/{name}.png)")
    if rows := list(_goals(goals, measured)):
        parts += ["### Goals", _table(["", "wanted", "measured", "met"], rows)]
    parts += ["### Conditions", "\n".join(_line(name, value) for name, value in results["conditions"].items())]
    return "\n\n".join(parts)


def _warning(conditions: dict[str, Any]) -> Iterator[str]:
    load, cores = float(conditions["load before"]), int(conditions["machine"].split()[0])
    if load > cores / 2:
        yield fill(
            f"**Other programs were using the machine** (load {load:g} on {cores} cores before the run): "
            "rates are low, and ratios are uncertain.",
            80,
        )


def _line(name: str, value: object) -> str:
    return fill(f"- {name}: {value}", 80, subsequent_indent="  ")


def _table(heads: list[str], rows: Iterable[Iterable[str]]) -> str:
    """The first column is text, the others are numbers."""
    lines = [heads, ["---", *["--:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _heads(measured: Measured) -> Iterator[str]:
    for column in measured.columns:
        yield column.title
        yield from ["range"] * column.range
        yield from [TIMES] * column.compared


def _cells(measured: Measured, contender: str) -> Iterator[str]:
    yield contender
    for column in measured.columns:
        values = measured.values(contender, column.key)
        yield column.show(median(values))
        if column.range:
            yield f"{column.show(min(values))} to {column.show(max(values))}"
        if column.compared:
            yield f"{measured.ratio(contender, measured.baseline(contender), column.key):.2f}"


def _goals(goals: Iterable[Goal], measured: dict[str, Measured]) -> Iterator[list[str]]:
    """Those of contenders that were measured."""
    for goal in goals:
        run = measured.get(goal.measurement)
        if run is None or not {goal.contender, goal.over or goal.contender} <= run.samples.keys():
            continue
        name = f"{goal.measurement} {goal.column}: {goal.contender}"
        if goal.over:
            name, value = f"{name} ÷ {goal.over}", run.ratio(goal.contender, goal.over, goal.column)
        else:
            value = median(run.values(goal.contender, goal.column))
        if goal.least is not None:
            yield [name, f"≥ {goal.least:g}", f"{value:.2f}", "yes" if value >= goal.least else "no"]
        if goal.most is not None:
            yield [name, f"≤ {goal.most:g}", f"{value:.2f}", "yes" if value <= goal.most else "no"]
