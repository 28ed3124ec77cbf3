"""A backlog over all priorities: kept, counted and consumed in order."""

import random
from collections import Counter
from collections.abc import Iterator

import pytest

from stack import inside as run
from stack import web
from stack.inside import Inside
from stack.poll import poll_until
from stack.stack import Stack
from stack.web import Prometheus

pytestmark = [pytest.mark.disruptive, pytest.mark.usefixtures("quiet")]

EACH = 3
PRIORITIES: list[int | None] = [*range(10), None] * EACH  # None: published without a priority


@pytest.fixture(scope="module")
def backlog(stack: Stack, quiet: None) -> Iterator[list[str]]:
    """Tasks published in a random order of priorities while no worker runs; returns their ids."""
    random.Random(3).shuffle(PRIORITIES)
    with stack.stopped("worker-low"):
        yield [
            stack.inside.call(run.publish, "tasks.basic.sleep", [[0.1]], **({} if p is None else {"priority": p}))[0]
            for p in PRIORITIES
        ]


def test_each_priority_has_its_own_list_and_unmarked_messages_are_in_the_middle(
    backlog: list[str], inside: Inside
) -> None:
    expected = {str(step): EACH for step in range(10)} | {"5": 2 * EACH}
    assert inside.call(run.waiting, "low") == expected


def test_the_queue_exporter_counts_what_redis_holds(backlog: list[str], inside: Inside, prometheus: Prometheus) -> None:
    truth = {step: float(number) for step, number in inside.call(run.waiting, "low").items()}
    assert sum(truth.values()) == len(PRIORITIES)

    def counted() -> dict[str, float]:
        found = prometheus.query('celery_queue_messages{queue="low",state="waiting"}')
        return {labels["priority"]: value for labels, value in found}

    poll_until(lambda: counted() == truth, f"celery_queue_messages of low to be {truth}", 20)
    poll_until(
        lambda: prometheus.value('celery_queue_consumers{queue="low"}') == 0, "no consumers of low in Prometheus", 20
    )
    assert prometheus.value('celery_queue_consumers{queue="high"}') == 1
    age = poll_until(
        lambda: prometheus.value('celery_queue_oldest_message_age_seconds{queue="low"}'),
        "an age of the oldest message",
        20,
    )
    assert age < 300


def test_flower_counts_what_redis_holds(backlog: list[str], stack: Stack) -> None:
    if "flower" not in stack.enabled:
        pytest.skip("flower: the profile events is not in COMPOSE_PROFILES (.env)")

    def counted() -> dict[str, int]:
        queues = web.get(f"{stack.url('flower')}/api/queues/length", web.login("flower"))["active_queues"]
        return {queue["name"]: queue["messages"] for queue in queues}

    poll_until(lambda: counted().get("low") == len(PRIORITIES), f"Flower to count {len(PRIORITIES)} of low", 20)


def test_the_most_urgent_run_first(backlog: list[str], stack: Stack, inside: Inside) -> None:
    stack.compose.start("worker-low")
    poll_until(lambda: Counter(inside.call(run.states, backlog)) == {"SUCCESS": len(backlog)}, "the backlog done", 60)
    ended = [result["ended"] for result in inside.call(run.results, backlog)]
    marked = [5 if priority is None else priority for priority in PRIORITIES]
    order = [priority for _, priority in sorted(zip(ended, marked, strict=True))]
    # Two tasks run at once, so neighbours may end in either order; the order differs by no more than that.
    for place, priority in enumerate(order):
        assert all(priority >= earlier for earlier in order[: max(0, place - 1)]), order
