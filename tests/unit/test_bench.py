"""The benchmarks' plans, tables and page; what they measure is in tests/readme/test_bench.py."""

import json
from importlib import import_module

import pytest

from bench.contenders import ALL, CONTENDERS
from bench.goals import GOALS
from bench.page import FOLDER, PAGE, with_results
from bench.plans import PLANS
from bench.report import Goal, render
from bench.stack import SIZES, STACK, STOCK


def test_each_name_of_a_plan_and_of_a_goal_exists() -> None:
    assert len(CONTENDERS) == len(ALL), "two have the same name"
    for plan in PLANS.values():
        for run in plan.runs:
            import_module(f"bench.measurements.{run.measurement}")
            assert set(run.contenders) <= CONTENDERS.keys()
    full = {run.measurement: run.contenders for run in PLANS["full"].runs}
    full |= {"stack": (STOCK, STACK), "scale": tuple(f"{size} containers" for size in SIZES)}
    for goal in GOALS:
        assert {goal.contender, goal.over or goal.contender} <= set(full[goal.measurement]), goal


@pytest.mark.parametrize("wanted", [{"least": 2.1}, {"most": 1.9}])
def test_a_ratio_is_the_median_of_those_of_the_rounds(wanted: dict[str, float]) -> None:
    rates = {"stock solo": [100, 1000, 400], "atomic solo": [200, 1500, 1200]}
    samples = {name: [{"rate": rate, "redis": 5} for rate in each] for name, each in rates.items()}
    results = {
        "conditions": {"machine": "2 cores", "load before": "3.5"},
        "samples": {"enqueue": samples},
        "failures": {"enqueue": {"rq": "it ended\n…"}},
    }
    goal = Goal(measurement="enqueue", column="rate", contender="atomic solo", over="stock solo", **wanted)
    text = render(results, [goal])
    assert "| atomic solo | 1200 | 200 to 1500 | 2.00 | 5 |" in text
    assert "(load 3.5 on 2 cores" in text
    assert "rq failed: it ended" in text.splitlines()
    assert "| 2.00 | no |" in text


def test_the_page_shows_the_results_that_are_beside_it() -> None:
    results = json.loads((FOLDER / "results.json").read_text())
    assert with_results(PAGE.read_text(), results) == PAGE.read_text(), "write it with: make bench"
    assert all((FOLDER / f"{name}.png").exists() for name in results["samples"])
