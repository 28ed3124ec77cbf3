"""Each fault of the table, injected into the real stack under load: no task is lost, none is applied twice."""

import os
from contextlib import nullcontext

import pytest

from faults.arena import PEER, Fault, on_a_small_disk, prepare, run_fault
from faults.ledger import Verdict
from faults.table import FAULTS
from stack.stack import Stack

ALL = os.environ.get("FAULTS") == "all"

pytestmark = pytest.mark.disruptive


ROWS = [
    pytest.param(fault, id=fault.name, marks=[pytest.mark.main] if fault.first == "test" else [])
    for fault in FAULTS
    if (ALL or fault.first != "test-faults") and not (PEER and fault.beat)
]


@pytest.mark.parametrize("fault", ROWS)
def test_nothing_is_lost_and_nothing_applied_twice(fault: Fault, arena_stack: Stack, rows: list[Verdict]) -> None:
    with on_a_small_disk(arena_stack) if fault.small_disk else nullcontext():
        prepare(arena_stack)
        verdict = run_fault(arena_stack, fault)
    rows.append(verdict)
    # A peer is measured, it has promised nothing.
    assert verdict.submitted if PEER else not verdict.wrong, verdict
