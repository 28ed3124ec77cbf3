"""`make soak FLEET=mixed`: when what is done, and which delayed tasks ran where."""

import pytest

from faults.fleet import NUMBERS, WORKERS, Fleet, delayed, main, timetable
from faults.runs import Run


def test_each_worker_is_moved_over_and_back_in_its_phase() -> None:
    table = timetable(lasts=600, every=15)
    assert table == sorted(table, key=lambda each: each[0])
    for move, phase in ((Fleet.move_over, 1), (Fleet.move_back, 3)):
        moves = [(when, number) for when, step, number in table if step == move]
        assert [number for _, number in moves] == list(range(WORKERS))
        assert all(phase * 120 <= when < (phase + 1) * 120 for when, _ in moves)
    assert [when for when, step, _ in table if step == Fleet.announce] == [0, 120, 240, 360, 480]
    assert [when for when, step, _ in table if step == Fleet.kill_one] == list(range(15, 601, 15))


def test_delayed_tasks_are_counted_by_publisher_and_worker() -> None:
    def a_run(number: int, worker: str, due: float = 90, attempt: int = 0) -> Run:
        return Run(number, attempt, 100, 101, worker, redelivered=False, last=True, due=due)

    runs = [a_run(0, "low@stock"), a_run(1, "low@atomic"), a_run(2, "low@atomic"), a_run(2 * NUMBERS, "low@stock")]
    runs += [a_run(3, "low@stock", due=0), a_run(4, "low@stock", attempt=1)]
    counts = list(delayed(runs, {"low@stock"}).values())
    assert counts[0] == "1 run by stock workers, 2 by atomic ones"
    assert counts[2] == "1 run by stock workers, 0 by atomic ones"


def test_a_soak_in_which_phases_would_overlap_is_refused() -> None:
    with pytest.raises(SystemExit, match="FOR: at least 10m"):
        main(["15s", "9m", "7"])
