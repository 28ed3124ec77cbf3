"""Progress of a test run, a line for each test: part of the run, test number of how many, time since the run began.

`scripts/test.sh` sets PART and STARTED (epoch s); without them the run is its own only part.
"""

import os
import time
from collections.abc import Generator
from typing import Any

import pytest


class Progress:
    """A plugin of pytest."""

    def __init__(self, reporter: Any) -> None:
        self._reporter = reporter
        self._part = os.environ.get("PART", "tests")
        self._started = float(os.environ.get("STARTED") or time.time())
        self._count = self._done = 0
        self._outcome = ""

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._count = len(session.items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        self._count = len(ids)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_report_teststatus(
        self, report: pytest.TestReport
    ) -> Generator[None, tuple[str, str, str], tuple[str, str, str]]:
        category, _letter, word = yield
        self._outcome = word if isinstance(word, str) and word else self._outcome
        return category, "", word  # no letter: the line says it

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._done += 1
        minutes, seconds = divmod(int(time.time() - self._started), 60)
        place = f"{self._part} {self._done}/{self._count} {minutes}:{seconds:02}"
        self._reporter.write_line(f"{place}  {self._outcome.lower() or 'passed'}  {nodeid}")
        self._outcome = ""
