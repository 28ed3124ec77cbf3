"""`make bench`, by what it prints."""

import re

from readme.clone import Clone


def test_bench_prints_the_rates_of_each_kind_of_task(clone: Clone) -> None:
    output = clone.output("make bench")
    rows = dict(re.findall(r"^\| (\w+) \| (\d+ \| \d+% \| \d+ \| \d+%) \|$", output, re.MULTILINE))
    assert list(rows) == ["plain", "late", "marked", "outboxed", "guarded"], output
    assert all(int(number) > 0 for row in rows.values() for number in re.findall(r"\d+", row)), output
    assert not clone.left("container")
