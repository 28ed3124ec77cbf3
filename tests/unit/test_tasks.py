"""The small tasks and workflows: their results, and what they say to wrong arguments."""

from typing import Any

import celery
import pytest

import timing
from tasks import advanced, basic, workflows

pytestmark = pytest.mark.usefixtures("eager")


def test_results() -> None:
    assert basic.add.delay(2, 2).get() == 4
    assert basic.sleep.delay(0).get() == 0
    assert basic.spin.delay(5).get() > 0


def test_progress_is_reported_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    states: list[dict[str, Any]] = []
    monkeypatch.setattr(advanced.progress, "update_state", lambda **state: states.append(state))
    assert advanced.progress.delay(steps=2, seconds=0).get() == {"done": 2, "steps": 2}
    assert states == [{"state": "PROGRESS", "meta": {"done": done, "steps": 2}} for done in (0, 1)]


@pytest.mark.parametrize("failures", [0, 1, 5])
def test_flaky_fails_as_often_as_told_and_then_succeeds(failures: int) -> None:
    assert basic.flaky.delay(failures).get() == failures + 1


@pytest.mark.parametrize(("asked", "given"), [(0, timing.MIN_RETRY_DELAY), (0.2, timing.MIN_RETRY_DELAY), (30, 30)])
def test_a_retry_never_runs_at_once(asked: float, given: float, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {}
    monkeypatch.setattr(celery.Task, "retry", lambda _, **given: options.update(given))
    basic.flaky.retry(countdown=asked)
    assert options["countdown"] == given


def test_failing_fails() -> None:
    with pytest.raises(RuntimeError, match="always fails: no luck"):
        basic.failing.delay("no luck").get()


@pytest.mark.parametrize(
    ("task", "arguments", "message"),
    [
        (basic.add, ["2", 2], r"x: a number from .* got '2'"),
        (basic.add, [2, True], r"y: a number"),
        (basic.add, [float("nan"), 2], r"x: a number"),
        (basic.flaky, [6], r"failures: a number from 0 to 5, got 6"),
        (basic.sleep, [46], r"seconds: a number from 0 to 45, got 46"),
        (basic.sleep, [-1], r"seconds: a number"),
        (basic.spin, [10**9], r"milliseconds: a number from 0 to 45000"),
        (advanced.progress, [0], r"steps: a number from 1 to 100"),
        (workflows.square, [None], r"x: a number"),
    ],
)
def test_a_wrong_argument_fails_at_once(task: Any, arguments: list[object], message: str) -> None:
    result = task.apply(args=arguments)
    assert result.state == "FAILURE"
    with pytest.raises(ValueError, match=message):
        result.get()


def test_workflows() -> None:
    assert workflows.add_then_square(1, 2).delay().get() == 9
    assert workflows.squares([1, 2, 3]).delay().get() == [1, 4, 9]
    assert workflows.sum_of_squares([1, 2, 3]).delay().get() == 14
    with pytest.raises(ValueError, match="numbers: 1 to 100 of them, got 0"):
        workflows.squares([])
