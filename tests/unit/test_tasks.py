"""The small tasks and workflows: their results, and their errors for wrong arguments."""

from typing import Any

import celery
import pytest
from pydantic import ValidationError, validate_call

from celery_app import Task, app
from settings import DELIVERY
from tasks import advanced, basic, workflows
from tasks.arguments import ArgumentError, Number, checked

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


@pytest.mark.parametrize(("asked", "given"), [(0, DELIVERY.min_retry_delay), (0.2, DELIVERY.min_retry_delay), (30, 30)])
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
        (basic.add, ["2", 2], "x: should be a valid number; it is '2'"),
        (basic.add, [2, True], "y: should be a valid number; it is True"),
        (basic.add, [float("nan"), 2], "x: should be greater"),
        (basic.add, ["2", None], "x: should be a valid number; it is '2'; y: should be a valid number; it is None"),
        (basic.flaky, [6], "failures: should be less than or equal to 5; it is 6"),
        (basic.sleep, [46], "seconds: should be less than or equal to 45; it is 46"),
        (basic.sleep, [-1], "seconds: should be greater than or equal to 0; it is -1"),
        (basic.spin, [10**9], "milliseconds: should be less than or equal to 45000"),
        (basic.hello, ["a b"], "name: String should match pattern"),
        (
            basic.buy_checked,
            [{"item": "tea", "quantity": 0, "price": 1}],
            "order.quantity: should be greater than 0; it is 0",
        ),
        (basic.buy_checked, [{"item": "tea"}], "order.quantity: Field required.*; order.price: Field required"),
        (advanced.progress, [0], "steps: should be greater than or equal to 1; it is 0"),
        (workflows.square, [None], "x: should be a valid number; it is None"),
        (workflows.total, [[1, "2"]], "numbers.1: should be a valid number; it is '2'"),
    ],
)
def test_a_wrong_argument_fails_at_once(task: Any, arguments: list[object], message: str) -> None:
    result = task.apply(args=arguments)
    assert result.state == "FAILURE"
    with pytest.raises(ArgumentError, match=message):
        result.get()


def test_a_wrong_argument_is_never_retried() -> None:
    tries = []

    @app.task(bind=True, ignore_result=False, autoretry_for=(Exception,), name="tests.picky")
    @checked
    def picky(self: Task, number: Number) -> None:
        tries.append(number)

    try:
        assert picky.apply(args=["one"]).state == "FAILURE"
        assert picky.apply(args=[1]).state == "SUCCESS"
        assert tries == [1]
    finally:
        app.tasks.unregister("tests.picky")


def test_the_wrong_arguments_of_another_call_inside_a_task_are_not_its_own() -> None:
    @checked
    def inner(number: Number) -> None: ...

    @validate_call
    def other(number: int) -> None: ...

    @checked
    def outer(call: Any) -> None:
        call("one")

    with pytest.raises(ArgumentError, match="number: should be a valid number"):
        outer(inner)
    with pytest.raises(ValidationError):
        outer(other)


def test_a_missing_argument_is_named_and_a_call_is_checked_where_it_is_made() -> None:
    with pytest.raises(ArgumentError, match=r"^y: Missing required argument$"):
        basic.add.run(1)
    with pytest.raises(TypeError, match="y"):
        basic.add.delay(1)


def test_workflows() -> None:
    assert workflows.add_then_square(1, 2).delay().get() == 9
    assert workflows.squares([1, 2, 3]).delay().get() == [1, 4, 9]
    assert workflows.sum_of_squares([1, 2, 3]).delay().get() == 14
    with pytest.raises(ValueError, match="numbers: 1 to 100 of them, got 0"):
        workflows.squares([])
