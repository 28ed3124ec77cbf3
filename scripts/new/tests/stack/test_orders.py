"""The example task on the stack while a worker is killed: every order is charged, none twice."""

from uuid import uuid4

import pytest

from stack import inside as run
from stack.inside import Inside
from stack.poll import poll_until
from stack.stack import REDELIVERED_WITHIN, Stack

ORDERS, CENTS = 500, 7
CHARGED_WITHIN = REDELIVERED_WITHIN + 85  # s

pytestmark = pytest.mark.main


def takings(inside: Inside) -> int:
    return int(inside.call(run.results_redis, "GET", "orders:takings") or 0)


def test_an_order_is_charged_by_a_worker(inside: Inside) -> None:
    (task,) = inside.call(run.publish, "tasks.orders.charge", [[uuid4().hex, CENTS]])
    poll_until(lambda: inside.call(run.states, [task]) == ["SUCCESS"], "the order charged", 30)
    assert inside.call(run.results, [task])[0]["result"] == CENTS


@pytest.mark.disruptive
def test_every_order_is_charged_once_although_a_worker_is_killed(stack: Stack, inside: Inside) -> None:
    before = takings(inside)
    stack.compose.stop(["worker-low"])
    ids = inside.call(run.publish, "tasks.orders.charge", [[uuid4().hex, CENTS] for _ in range(ORDERS)])
    stack.compose.start(["worker-low"])
    poll_until(lambda: takings(inside) > before, "a first order charged", 30, interval=0.05)
    assert inside.call(run.backlog) > ORDERS / 2, "most were charged before the kill: nothing was tested"
    stack.crash("worker-low")
    poll_until(lambda: inside.call(run.states, ids) == ["SUCCESS"] * ORDERS, "every order charged", CHARGED_WITHIN)
    assert takings(inside) == before + ORDERS * CENTS
