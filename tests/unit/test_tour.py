"""The tour without a stack: its lessons cover all concepts, its checks can fail, its pages are up to date."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from tour import evidence, page, record
from tour.evidence import Check, Seen, both
from tour.lesson import Concept, Lesson, Step
from tour.lessons import CONCEPTS, LESSONS

ROOT = Path(__file__).parents[2]

#: What the tour must show, by concept. A step names what it shows in `covers`.
TABLE: dict[str, set[str]] = {
    "Definition and execution": {
        "delay",
        "apply_async",
        "apply",
        "send_task",
        "bound tasks",
        "custom Task base class",
        "shared_task",
        "autodiscovery",
        "names",
        "argument checking",
        "pydantic arguments",
        "get_task_logger",
        "ignore_result",
    },
    "States": {
        "PENDING",
        "STARTED",
        "SUCCESS",
        "FAILURE",
        "RETRY",
        "REVOKED",
        "custom PROGRESS state",
        "an unknown id",
    },
    "Signatures": {
        "add.s(2, 2).delay()",
        "partial",
        "immutable si",
        "options on a signature",
        "clone",
        "link",
        "link_error",
        "serialising a signature",
    },
    "Canvas": {
        "chain",
        "group",
        "chord",
        "map",
        "starmap",
        "chunks",
        "chain of groups",
        "chord in a chain",
        "a chord whose member fails",
        "replace",
        "stamping",
        "size of a canvas message",
        "why a huge chord needs chunks",
    },
    "Beat": {
        "interval",
        "crontab",
        "timezone-aware entries",
        "solar entries",
        "arguments of an entry",
        "queue of an entry",
        "priority of an entry",
        "expiry of an entry",
        "persistent schedule over a restart",
        "what a missed tick does",
        "two beats",
        "ping of beat",
    },
    "Errors and retries": {
        "autoretry_for",
        "backoff",
        "backoff_max",
        "jitter",
        "manual retry with countdown",
        "max_retries",
        "dont_autoretry_for",
        "Reject",
        "Ignore",
        "acks_late",
        "on_failure",
        "error callbacks",
        "task_retry_on_worker_lost",
    },
    "Time limits and revoking": {
        "soft limit handled and cleaned up",
        "hard limit",
        "revoke before start",
        "terminate while running",
        "revoke by stamp",
        "revokes over a restart (--statedb)",
        "expires",
        "rate limits",
        "ETA and countdown",
        "their limits on Redis",
    },
    "Results": {
        "get with time-out",
        "propagate",
        "iterating a group",
        "forget",
        "expiry",
        "children and graph",
        "ignore_result's saving",
        "result_extended",
        "when to have no result at all",
    },
    "Routing and priorities": {
        "routes",
        "queue `high` against `low`",
        "priority 0..9 inside a queue",
        "the default priority must not be the most urgent",
        "many tasks in `low`, then one in `high`",
        "what prefetch does to it",
    },
    "Workers": {
        "prefork",
        "threads",
        "gevent",
        "solo",
        "which work suits each",
        "concurrency",
        "autoscale",
        "prefetch",
        "max_tasks_per_child",
        "max_memory_per_child",
        "signals",
        "clients opened before the fork",
        "warm stop",
        "soft stop",
        "cold stop",
    },
    "Serialisation": {"JSON", "why not pickle", "what cannot be sent", "ids instead of objects"},
    "Monitoring": {
        "status",
        "inspect active",
        "inspect reserved",
        "inspect scheduled",
        "inspect revoked",
        "inspect registered",
        "inspect stats",
        "control add_consumer",
        "control pool_grow",
        "control rate_limit",
        "control shutdown",
        "events",
        "Flower by its API",
        "metrics",
        "a link to Grafana for one task",
    },
    "Best practices": {
        f"{practice}: {half}"
        for practice in (
            "idempotency",
            "atomicity",
            "small tasks",
            "results sparingly",
            "time-outs",
            "retries with backoff",
        )
        for half in ("failure", "solution")
    },
    "Classic mistakes": {
        "result.get() inside a task",
        "publishing before the data is written",
        "a task that no worker consumes",
        "a misspelt queue",
        "an argument that is not JSON",
        "a changed signature while old messages wait",
        "testing with eager mode only",
    },
}

STEPS = [
    pytest.param(lesson, step, id=f"{lesson.name}: {step.title}")
    for lesson in LESSONS.values()
    for step in lesson.steps
]


def test_the_concepts_are_those_of_the_table() -> None:
    assert [concept.title for concept in CONCEPTS] == list(TABLE)


@pytest.mark.parametrize("concept", CONCEPTS, ids=lambda concept: concept.title)
def test_a_concepts_lessons_show_all_that_the_table_names_and_nothing_else(concept: Concept) -> None:
    shown = {topic for lesson in concept.lessons for step in lesson.steps for topic in step.covers}
    assert shown == TABLE[concept.title]


def test_names_are_used_once() -> None:
    names = [lesson.name for concept in CONCEPTS for lesson in concept.lessons] + [concept.page for concept in CONCEPTS]
    assert sorted(names) == sorted(set(names))
    assert all(re.fullmatch(r"[a-z-]+", name) for name in names)


@pytest.mark.parametrize(("lesson", "step"), STEPS)
def test_a_step_shows_its_code_says_what_must_be_seen_and_leaves_one_sentence(lesson: Lesson, step: Step) -> None:
    assert step.covers
    assert step.expect
    assert step.learn.endswith(".")
    assert len(step.learn) < 160
    for file, code in step.code:
        source = (ROOT / file).read_text()
        assert code
        assert all(line.strip() in source for line in code.splitlines())


@pytest.mark.parametrize(
    "file", sorted((ROOT / "services/celery/tour/lessons").glob("*.py")), ids=lambda file: file.stem
)
def test_no_lesson_makes_its_own_evidence(file: Path) -> None:
    """Evidence is read by tour/backend.py, broker.py, events.py …; a lesson may only draw conclusions from it."""
    calls = [node.func for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    assert not [call for call in calls if isinstance(call, ast.Name) and call.id == "Seen"]


# --- Checks ---


@pytest.mark.parametrize(
    ("check", "holds", "fails"),
    [
        (evidence.equal(4), [4], [5, "4", 4.0, True, None]),
        (evidence.equal([1, 2]), [[1, 2]], [[2, 1], [1], (1, 2)]),
        (evidence.equal(0), [0], [False]),
        (evidence.between(1, 2, "s"), [1, 1.5, 2], [0.9, 2.1]),
        (evidence.at_least(3), [3, 4.5], [2]),
        (evidence.at_most(3), [3, 0], [3.1]),
        (evidence.containing("a", "b"), [["b", "c", "a"], "cab"], [["a"], "bc", []]),
        (evidence.starting(1, 2), [[1, 2, 3], [1, 2]], [[2, 1], [1], []]),
        (evidence.matching("^low@"), ["low@x"], ["high@x", ""]),
    ],
    ids=lambda value: value.words if isinstance(value, Check) else "",
)
def test_a_check_holds_and_fails(check: Check, holds: list[Any], fails: list[Any]) -> None:
    assert all(check.holds(value) for value in holds)
    assert not any(check.holds(value) for value in fails)


def step_expecting(**expect: object) -> Step:
    lesson = Lesson("name", "title", "concept")
    lesson.step("step", expect=expect, learn="Learn.")(lambda tour: {})
    return lesson.steps[0]


def test_evidence_is_compared_with_what_must_be_seen() -> None:
    step = step_expecting(result=4, runs=evidence.at_least(2))
    good = record.findings(step, {"result": Seen(4, "backend"), "runs": Seen(3, "events")})
    assert [(finding.name, finding.holds, finding.source) for finding in good] == [
        ("result", True, "backend"),
        ("runs", True, "events"),
    ]
    bad = record.findings(step, {"result": Seen("4", "backend"), "runs": Seen(None, "events")})
    assert [finding.holds for finding in bad] == [False, False]


@pytest.mark.parametrize("evidence", [{}, {"result": Seen(4, "backend"), "more": Seen(1, "broker")}])
def test_evidence_that_is_missing_or_unasked_for_is_an_error(evidence: dict[str, Seen[Any]]) -> None:
    with pytest.raises(LookupError):
        record.findings(step_expecting(result=4), evidence)


def test_conclusions_keep_their_sources() -> None:
    first, second = Seen(2, "backend"), Seen(3, "events")
    assert first.map(lambda value: value + 1) == Seen(3, "backend")
    assert both(first, second).map(sum) == Seen(5, "backend, events")
    assert both(first, first).source == "backend"


# --- Pages ---


@pytest.mark.parametrize("name", page.pages({}))
def test_a_page_is_what_the_lessons_say(name: str) -> None:
    """`make lessons` writes the pages; only the columns of the recorded run are not compared."""
    written = (ROOT / "docs/lessons" / name).read_text()
    assert page.without_record(written) == page.without_record(page.pages({})[name]), "run `make lessons`"


def test_there_is_no_other_page() -> None:
    assert {file.name for file in (ROOT / "docs/lessons").iterdir()} == set(page.pages({}))


def test_a_page_says_what_was_seen() -> None:
    written = (ROOT / "docs/lessons/states.md").read_text()
    assert re.search(r"^\| traceback \| matches `in failing` \| `.*Traceback.*` \| backend \|$", written, re.MULTILINE)
    assert re.search(r"^\| state \| `'FAILURE'` \|  \| backend \|$", written, re.MULTILINE)


def test_no_page_is_written_from_a_tour_that_failed() -> None:
    step = {
        "lesson": "x",
        "step": "y",
        "error": "",
        "findings": {"result": {"value": 1, "holds": False, "source": "s"}},
    }
    with pytest.raises(ValueError, match="lesson x failed"):
        page.read(f"[{str(step).replace(chr(39), chr(34)).replace('False', 'false')}]")
