"""`python -m bench.page quick`: puts the results of a plan's last run into docs/performance.md, with its plots."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from bench.goals import GOALS
from bench.report import render

ROOT = Path(__file__).parents[1]
PAGE, FOLDER = ROOT / "docs/performance.md", ROOT / "docs/performance"
BLOCK = re.compile(r"(?<=<!-- >>> bench: written by `make bench` -->\n).*(?=<!-- <<< bench -->)", re.DOTALL)


def with_results(page: str, results: dict[str, Any]) -> str:
    """The page with these results."""
    text = f"\n{render(results, GOALS, FOLDER.name)}\n\n"
    page, replaced = BLOCK.subn(lambda _: text, page)
    if not replaced:
        raise SystemExit(f"{PAGE}: the lines that enclose the results are missing: {BLOCK.pattern}")
    return page


def main(plan: str) -> None:
    source = ROOT / "bench/results" / plan
    results = json.loads((source / "results.json").read_text())
    PAGE.write_text(with_results(PAGE.read_text(), results))
    shutil.rmtree(FOLDER, ignore_errors=True)
    shutil.copytree(source, FOLDER, ignore=shutil.ignore_patterns("stack.json"))  # it is part of results.json


if __name__ == "__main__":
    main(sys.argv[1])
