"""The fault tests' own stack, with an admin user of Redis for the rows that need one."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults import report
from faults.arena import own_stack, variant
from faults.ledger import Verdict
from faults.report import Unprotected
from stack.stack import Stack

# WITHOUT=outbox: not the table, but the tests that it can fail.
collect_ignore = ["test_faults.py" if os.environ.get("WITHOUT") else "test_protections.py"]

verdicts: list[Verdict] = []
without: list[Unprotected] = []


@pytest.fixture(scope="module")
def arena_stack(request: pytest.FixtureRequest) -> Iterator[Stack]:
    """The stack of the other tests, restored afterwards; for `make test-faults` a separate one."""
    if os.environ.get("FAULTS") != "all":
        stack = request.getfixturevalue("stack")
        yield stack
        stack.scale(worker_low=1)
        stack.wait_healthy()
        return
    with own_stack() as stack:
        yield stack


@pytest.fixture
def rows() -> list[Verdict]:
    """Collects the rows."""
    return verdicts


@pytest.fixture
def unprotected() -> list[Unprotected]:
    """Collects the rows without a protection."""
    return without


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The tables, before pytest's own count."""
    if verdicts:
        terminalreporter.section("faults")
        terminalreporter.write_line(report.table(verdicts))
        file = Path(report.NAME.format(variant()) if os.environ.get("FAULTS") == "all" else "faults.json")
        report.write(verdicts, file)
        terminalreporter.write_line(f"written to {file}")
    if without:
        terminalreporter.section("without a protection")
        terminalreporter.write_line(report.protections(without))
