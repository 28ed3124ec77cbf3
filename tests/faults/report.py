"""The fault table as text and as JSON."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import shorten

from faults.ledger import Verdict
from faults.protections import Protection

NAME = "faults-{}.json"  # of a run of the whole table

COLUMNS = (
    ("fault", "fault"),
    ("executing", "exec"),
    ("held", "held"),
    ("published", "publ/s"),
    ("submitted", "tasks"),
    ("raised", "raised"),
    ("lost", "lost"),
    ("twice", "twice"),
    ("again", "reruns"),
    ("dead", "dead"),
    ("gap", "gap s"),
    ("resumed", "again s"),
    ("redelivered", "redel. s"),
    ("recovered", "back s"),
    ("blocked", "block s"),
)


def cell(value: object) -> str:
    """A value as short text."""
    return f"{value:.1f}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Unprotected:
    """A row with a protection turned off."""

    protection: Protection
    verdict: Verdict


def table(verdicts: Iterable[Verdict]) -> str:
    """The fault table, in Markdown."""
    rows = [[cell(getattr(verdict, name)) for name, _ in COLUMNS] for verdict in verdicts]
    return _markdown([title for _, title in COLUMNS], ["---", *["--:"] * (len(COLUMNS) - 1)], rows)


def protections(made: Iterable[Unprotected]) -> str:
    """What failed without each protection, in Markdown."""
    rows = [
        [
            each.protection.name,
            each.protection.what,
            each.verdict.fault,
            shorten("; ".join(each.verdict.wrong) or "nothing", 120),
        ]
        for each in made
    ]
    return _markdown(["without", "it is", "fault", "then"], ["---"] * 4, rows)


def compare(files: Iterable[Path]) -> str:
    """Runs of `make test-faults` side by side, in Markdown: tasks lost, effects applied twice, s until redelivered."""
    runs = {file.stem.removeprefix(NAME.partition("{")[0]): json.loads(file.read_text()) for file in files}
    cells: dict[str, dict[str, str]] = {}
    for name, verdicts in runs.items():
        for verdict in verdicts:
            figures = (verdict["lost"], verdict["twice"], round(verdict["redelivered"]))
            cells.setdefault(verdict["fault"], {})[name] = " / ".join(map(str, figures))
    rows = [[fault, *(of_run.get(name, "") for name in runs)] for fault, of_run in cells.items()]
    return _markdown(["fault", *runs], ["---", *["--:"] * len(runs)], rows)


def _markdown(head: list[str], line: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, line, *rows))


def write(verdicts: Iterable[Verdict], file: Path) -> None:
    """Write the rows as JSON."""
    file.write_text(json.dumps([asdict(verdict) for verdict in verdicts], indent=1))


if __name__ == "__main__":
    print(compare(sorted(Path().glob(NAME.format("*")))))
