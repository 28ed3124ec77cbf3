"""Writes docs/lessons/: the lessons as pages, with their source and the evidence of a run.

`make lessons` runs the tour, then `python -m tour.page RECORD FOLDER`; RECORD is what `python -m tour --json` printed.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from tour.lesson import Concept, Lesson, Step
from tour.lessons import CONCEPTS
from tour.show import value

NOTICE = "<!-- Written by `make lessons` from services/celery/tour/: edit the lessons, not this page. -->\n"
Record = dict[tuple[str, str], dict[str, Any]]  # (lesson, step) -> its entry in the tour's --json output


def read(text: str) -> Record:
    """The record of a tour. Raises ValueError when a step failed."""
    steps = json.loads(text)
    for step in steps:
        if step["error"] or not all(finding["holds"] for finding in step["findings"].values()):
            raise ValueError(f"lesson {step['lesson']} failed: {step}")
    return {(step["lesson"], step["step"]): step for step in steps}


def pages(record: Record) -> dict[str, str]:
    """Each page by its file name."""
    return {"README.md": _contents(), **{f"{concept.page}.md": _page(concept, record) for concept in CONCEPTS}}


def without_record(page: str) -> str:
    """A page without the columns that differ between runs: what was seen, and its source."""
    return re.sub(r"^(\| .+ \| .+ \|).+\|.+\|$", r"\1", page, flags=re.MULTILINE)


def _contents() -> str:
    rows = [
        f"| [{concept.title}]({concept.page}.md) | {', '.join(f'`{lesson.name}`' for lesson in concept.lessons)} |"
        for concept in CONCEPTS
    ]
    return "\n".join(
        [
            NOTICE,
            "# Lessons\n",
            "Each lesson runs on the live stack, shows what happens and checks it. `make tour` runs all,",
            "`make tour LESSON=chords` one, `make tour LESSON=canvas` those of a page; `LESSON=list` shows them.",
            "`PAUSE=1` waits for Enter before each step.",
            "A page shows the source code, what must be seen, and what was seen when the page was written.\n",
            "| Concept | Lessons |",
            "|---|---|",
            *rows,
            "",
        ]
    )


def _page(concept: Concept, record: Record) -> str:
    parts = [NOTICE, f"# {concept.title}\n", f"{concept.intro}\n"]
    for lesson in concept.lessons:
        parts += [f"## {lesson.title}\n", f"`make tour LESSON={lesson.name}`\n"]
        for step in lesson.steps:
            parts += _step(lesson, step, record.get((lesson.name, step.title), {"findings": {}}))
    return "\n".join(parts)


def _step(lesson: Lesson, step: Step, recorded: dict[str, Any]) -> list[str]:
    parts = [f"### {step.title}\n"]
    for file, code in step.code:
        parts += ["```python", f"# {file}", code, "```\n"]
    parts += ["| Evidence | Must be | Seen | Source |", "|---|---|---|---|"]
    for name, check in step.expect.items():
        finding = recorded["findings"].get(name)
        seen = f"`{_cell(value(finding['value']))}`" if finding and not check.exact else ""
        by = finding["source"] if finding else "not run: a service was not available"
        words = f"`{_cell(check.words)}`" if check.exact else _cell(check.words)
        parts.append(f"| {_cell(name)} | {words} | {seen} | {by} |")
    return [*parts, f"\n> {step.learn}\n"]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main(record: str, folder: str) -> None:
    """Write the pages."""
    for name, text in pages(read(Path(record).read_text())).items():
        (Path(folder) / name).write_text(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
