"""The index is exact: it equals a single-process count of the same files, also after a worker was killed."""

import pytest

from stack import inside as run
from stack.inside import Inside, Json
from stack.poll import poll_until
from stack.stack import Stack

pytestmark = pytest.mark.disruptive

REDISPATCHED_WITHIN = 180  # s: a lease, or the run's deadline and the next tick of repair


@pytest.fixture(scope="module")
def truth(stack: Stack) -> Json:
    """The count by one process without Redis and Celery."""
    counted = stack.inside.call(run.count_corpus)
    assert counted["documents"] > 50
    assert counted["words"] > 100_000
    return counted


def start_run(inside: Inside) -> str:
    """Start an indexing run; one that beat has just started may have to end first."""

    def start() -> str:
        (task,) = inside.call(run.publish, "tasks.search.index_corpus", [[]], priority=0)
        poll_until(lambda: inside.call(run.states, [task]) == ["SUCCESS"], "index_corpus to list the corpus", 60)
        return task if inside.call(run.results, [task])[0]["result"]["run"] == task else ""

    return poll_until(start, "a run of our own: another one is active", 180, interval=2)


def wait_complete(inside: Inside, task: str, timeout: float = 60) -> Json:
    """Wait until a run's index is the current one; returns its report."""
    return poll_until(
        lambda: state if (state := inside.call(run.run_state, task))["state"] == "complete" else {},
        f"run {task} complete",
        timeout,
    )


def audit(inside: Inside) -> Json:
    """Totals of the index, added up from every posting by a worker."""
    (task,) = inside.call(run.publish, "tasks.search.audit", [[]], priority=0)
    poll_until(lambda: inside.call(run.states, [task]) == ["SUCCESS"], "an audit of the index", 60)
    return dict(inside.call(run.results, [task])[0]["result"])


@pytest.mark.main
def test_the_index_equals_the_single_process_count_also_after_another_run(inside: Inside, truth: Json) -> None:
    inside.call(run.forget_index)
    report = wait_complete(inside, start_run(inside))
    assert audit(inside) == truth
    assert {name: report[name] for name in ("documents", "words", "terms")} == {
        name: truth[name] for name in ("documents", "words", "terms")
    }
    again = wait_complete(inside, start_run(inside))
    assert again["new"] == 0, "no document has changed: none is counted again"
    assert audit(inside) == truth


def test_the_index_equals_the_single_process_count_after_a_worker_was_killed_in_the_middle(
    stack: Stack, inside: Inside, truth: Json
) -> None:
    def caught_in_the_middle() -> str:
        """Freeze the worker while some chunks are in and some are not."""
        inside.call(run.forget_index)
        task = start_run(inside)
        poll_until(
            lambda: 0 < (s := inside.call(run.run_state, task))["missing"] < s["chunks"] or s["state"] == "complete",
            "some chunks counted",
            60,
            interval=0.05,
        )
        stack.compose.pause("worker-low")
        if inside.call(run.run_state, task)["missing"]:
            return task
        stack.compose.unpause("worker-low")
        return ""

    task = poll_until(caught_in_the_middle, "a run caught in the middle", 120)
    stack.crash("worker-low")
    wait_complete(inside, task, REDISPATCHED_WITHIN)
    assert audit(inside) == truth


def test_queries_are_answered_while_low_work_floods(inside: Inside, truth: Json) -> None:
    wait_complete(inside, start_run(inside))
    flood = inside.call(run.publish, "tasks.basic.spin", [[100]] * 300, priority=8)
    for term in ("import", "self", "return", "socket", "class"):
        (query,) = inside.call(run.publish, "tasks.search.search", [[term]])
        poll_until(lambda q=query: inside.call(run.states, [q]) == ["SUCCESS"], f"an answer to {term!r}", 10)  # type: ignore[misc]
        answer = inside.call(run.results, [query])[0]["result"]
        assert answer["documents"] > 0
        assert answer["best"][0]["count"] > 0
    assert "PENDING" in inside.call(run.states, flood), "the flood had ended: nothing was tested"
    poll_until(lambda: inside.call(run.states, flood) == ["SUCCESS"] * 300, "the flood done", 120, interval=1)
