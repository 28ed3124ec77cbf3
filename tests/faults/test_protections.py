"""The fault tests can fail: with a protection turned off, the row of its fault fails."""

import os

import pytest

from faults.arena import own_stack, prepare, run_fault
from faults.protections import PROTECTIONS, Protection
from faults.report import Unprotected
from faults.table import FAULTS

WITHOUT = os.environ.get("WITHOUT", "")
CHOSEN = [each for each in PROTECTIONS if WITHOUT in ("all", each.name)]


def test_the_name_of_the_protection() -> None:
    assert CHOSEN, f"WITHOUT: {WITHOUT!r}; choose all or of {', '.join(each.name for each in PROTECTIONS)}"


@pytest.mark.parametrize("protection", CHOSEN, ids=lambda each: each.name)
def test_without_it_its_row_fails(protection: Protection, unprotected: list[Unprotected]) -> None:
    (fault,) = [fault for fault in FAULTS if fault.name == protection.fault]
    with own_stack({protection.name: False}) as stack:
        prepare(stack)
        verdict = run_fault(stack, fault)
    unprotected.append(Unprotected(protection, verdict))
    assert verdict.wrong, f"{fault.name} passes without {protection.name}: {verdict}"
