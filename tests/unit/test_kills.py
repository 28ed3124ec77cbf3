"""The verdict of `make soak KILLS=…`: what is lost, what ran twice and why, what is left in the broker."""

import pytest

from faults.kills import main, report, what_is_wrong
from faults.runs import Judged, Kill, Run, judge, left_over

FIRST, SECOND = "low@first", "low@second"


def a_run(number: int, began: float = 100, worker: str = FIRST, attempt: int = 0, last: bool = True) -> Run:
    return Run(number, attempt, began, began + 1, worker, redelivered=worker == SECOND, last=last)


def verdict(submitted: int, runs: list[Run], *kills: Kill) -> Judged:
    return judge(set(range(submitted)), set(), runs, kills)


def test_a_line_of_the_ledger() -> None:
    line = "7 1 100.500 101.250 low@first True False 99.75"
    assert Run.read(line) == Run(7, 1, 100.5, 101.25, FIRST, True, False, 99.75)


def test_each_task_is_applied_once() -> None:
    assert verdict(2, [a_run(1), a_run(0)]) == Judged(applied=2)


def test_a_task_without_a_last_run_is_lost() -> None:
    retried = a_run(1, last=False)
    found = verdict(3, [a_run(0), retried], Kill(FIRST, 100, 101))
    assert (found.applied, found.lost) == (1, [1, 2])


def test_a_run_that_nobody_submitted() -> None:
    assert verdict(1, [a_run(0), a_run(5)]).unknown == [5]


def test_a_task_whose_publish_raised_may_run_and_may_not() -> None:
    assert judge({0}, {1, 2}, [a_run(0), a_run(1), a_run(1)], []) == Judged(applied=1)


# Each ran from 100 to 101 on the first worker, and from 120 on the second one.
@pytest.mark.parametrize(
    ("kill", "attributed"),
    [
        (Kill(FIRST, 100.5, 100.9), True),
        (Kill(FIRST, 99.9, 100.1), True),  # it may have lived until 100.1
        (Kill(FIRST, 105.9, 106.3), True),  # not yet acknowledged, although it is late
        (Kill(FIRST, 98, 99.9), False),  # an earlier life of the worker
        (Kill(FIRST, 106.1, 106.3), False),  # acknowledged long before
        (Kill(SECOND, 100.5, 100.9), False),
        (Kill(SECOND, 120.5, 120.9), False),  # of the run that should not have been
    ],
)
def test_a_second_run_is_attributed_to_a_kill_of_the_first_ones_worker(kill: Kill, attributed: bool) -> None:
    found = verdict(1, [a_run(0, 120, SECOND), a_run(0)], kill)
    assert (found.attributed, found.unattributed) == ((1, []) if attributed else (0, [0]))
    assert (found.applied, found.lost, found.redelivered) == (1, [], 1)


def test_one_kill_explains_one_run_more() -> None:
    found = verdict(1, [a_run(0), a_run(0, 120, SECOND), a_run(0, 140, SECOND)], Kill(FIRST, 100.5, 100.9))
    assert (found.attributed, found.unattributed) == (1, [0])


def test_each_run_may_publish_the_retry() -> None:
    """A worker that is killed after it has published the retry, and before the acknowledgement, causes two of them."""
    runs = [a_run(0, last=False), a_run(0, 120, SECOND, last=False)]
    runs += [a_run(0, began, SECOND, attempt=1) for began in (102, 122)]
    found = verdict(1, runs, Kill(FIRST, 101.1, 101.2))
    assert (found.applied, found.attributed, found.unattributed) == (1, 1, [])
    found = verdict(1, [*runs, a_run(0, 130, SECOND, attempt=1)], Kill(FIRST, 101.1, 101.2))
    assert found.unattributed == [0]


def test_a_task_runs_before_its_eta() -> None:
    runs = [a_run(0)._replace(due=99), a_run(1)._replace(due=100), a_run(2)._replace(due=100.1)]
    assert verdict(3, runs).early == [2]


def test_keys_that_are_left() -> None:
    expected = [
        "_kombu.binding.low",
        "_kombu.binding_deadlines",
        "celery-durable:workers",
        "celery-durable:waiting:low",
    ]
    left = ["low", "low\x06\x169", "unacked", "unacked_index", "celery-durable:delayed:low"]
    assert list(left_over([*expected, *left])) == left


def test_what_is_wrong() -> None:
    assert what_is_wrong(Judged(applied=9, attributed=2), []) == []
    wrong = what_is_wrong(Judged(lost=[4], unattributed=[5], unknown=[6], early=[7]), ["unacked"])
    assert [line.rpartition(": ")[2] for line in wrong] == ["4", "5", "6", "7", "unacked"]


def test_the_report_fits_80_columns() -> None:
    wrong = what_is_wrong(Judged(lost=list(range(1_000_000, 1_000_020))), [])
    text = report({"lost": 20, "tasks submitted": 1_000_020}, wrong)
    assert text.splitlines()[0] == "lost             20"
    assert "WRONG: 20 tasks lost: 1000000" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("arguments", [("0s", "60m"), ("2m", "90s"), ("15", "60m")])
def test_a_wrong_time_between_kills_is_refused(arguments: tuple[str, str]) -> None:
    with pytest.raises(SystemExit, match="KILLS"):
        main([*arguments, "7"])
