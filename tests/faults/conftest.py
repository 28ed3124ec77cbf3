"""The fault tests' own stack: with an administrator of Redis for the rows that need one."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults import report
from faults.arena import changed
from faults.ledger import Verdict
from stack.stack import PROJECT, Stack, defaults

verdicts: list[Verdict] = []


@pytest.fixture(scope="session")
def arena_stack(request: pytest.FixtureRequest) -> Iterator[Stack]:
    """In `make test` the stack of the other tests; in `make test-faults` one of its own."""
    if os.environ.get("FAULTS") != "all":
        yield request.getfixturevalue("stack")
        return
    os.environ.update(defaults())
    with changed() as file:
        stack = Stack(PROJECT, file)
        try:
            stack.up()
            yield stack
        finally:
            if os.environ.get("KEEP") != "1":
                stack.down()


@pytest.fixture
def book() -> list[Verdict]:
    """Where rows go that were made."""
    return verdicts


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The fault table, before pytest's own count."""
    if verdicts:
        terminalreporter.section("faults")
        terminalreporter.write_line(report.table(verdicts))
        file = Path(os.environ.get("FAULTS_JSON", "faults.json"))
        report.write(verdicts, file)
        terminalreporter.write_line(f"written to {file}")
