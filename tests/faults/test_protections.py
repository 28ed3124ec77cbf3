"""The proof can fail: with a protection switched off, the row that it protects from goes red."""

import os

import pytest

from faults.arena import changed, prepare, run_fault
from faults.protections import PROTECTIONS, Protection
from faults.report import Unprotected
from faults.table import FAULTS
from stack.stack import PROJECT, Stack, defaults

WITHOUT = os.environ.get("WITHOUT", "")
CHOSEN = [each for each in PROTECTIONS if WITHOUT in ("all", each.name)]


def test_the_name_of_the_protection() -> None:
    assert CHOSEN, f"WITHOUT: {WITHOUT!r}; choose all or of {', '.join(each.name for each in PROTECTIONS)}"


@pytest.mark.parametrize("protection", CHOSEN, ids=lambda each: each.name)
def test_without_it_its_row_goes_red(protection: Protection, unprotected: list[Unprotected]) -> None:
    (fault,) = [fault for fault in FAULTS if fault.name == protection.fault]
    os.environ.update(defaults())
    with changed(code=protection.off) as file:
        stack = Stack(PROJECT, file)
        try:
            stack.up()
            prepare(stack)
            verdict = run_fault(stack, fault)
        finally:
            stack.down()
    unprotected.append(Unprotected(protection, verdict))
    assert verdict.wrong, f"{fault.name} stays green without {protection.name}: {verdict}"
