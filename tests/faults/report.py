"""The fault table as text and as JSON."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from faults.ledger import Verdict

COLUMNS = (
    ("fault", "fault"),
    ("executing", "exec"),
    ("held", "held"),
    ("published", "publ/s"),
    ("submitted", "units"),
    ("raised", "raised"),
    ("lost", "lost"),
    ("twice", "twice"),
    ("again", "reruns"),
    ("dead", "dead"),
    ("gap", "gap s"),
    ("redelivered", "redel. s"),
    ("recovered", "back s"),
    ("blocked", "block s"),
)


def cell(value: object) -> str:
    """A value, short."""
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def table(verdicts: Iterable[Verdict]) -> str:
    """A Markdown table, one row a fault."""
    rows = [[cell(getattr(verdict, name)) for name, _ in COLUMNS] for verdict in verdicts]
    head = [title for _, title in COLUMNS]
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---", *["--:"] * (len(head) - 1)], *rows)]
    return "\n".join(lines)


def write(verdicts: Iterable[Verdict], file: Path) -> None:
    """As JSON."""
    file.write_text(json.dumps([asdict(verdict) for verdict in verdicts], indent=1))
