"""The tour without a stack: its lessons cover all concepts, its checks can fail, its pages are up to date."""

import ast
import builtins
import io
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from celery import current_app
from rich.console import Console

from stack.sabotages import SABOTAGES, Sabotage
from tasks import basic
from tour import __main__ as program
from tour import evidence, page, record, show
from tour.code import YOURS, calls_of
from tour.events import Event, at_once, delay
from tour.evidence import Check, Seen, both
from tour.lesson import Concept, Lesson, Step
from tour.lessons import CONCEPTS, LESSONS
from tour.record import Finding, Outcome

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
        "async code",
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
        "changing a schedule while it runs",
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
    "Serialisation": {
        "JSON",
        "why not pickle",
        "what cannot be sent",
        "ids instead of objects",
        "compression",
        "signing",
    },
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
        "a control command of one's own",
        "broadcast",
        "a stuck worker",
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
            "no overlapping runs",
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
        "testing with a real worker",
        "a transaction and a task",
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
    assert step.code
    for file, code in step.code:
        if file != YOURS:
            source = (ROOT / file).read_text()
            assert code
            assert all(line.strip() in source for line in code.splitlines())


def names_of(tree: ast.AST, context: type[ast.expr_context]) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, context)}


@pytest.mark.parametrize(("lesson", "step"), STEPS)
def test_the_calls_of_a_step_are_those_of_a_user_without_the_tours_helpers(lesson: Lesson, step: Step) -> None:
    """Each name that they use is Python's, imported by the lesson, or defined above it."""
    known = {"app", "durable", *dir(builtins), *vars(sys.modules[step.run.__module__])} - {"tour"}
    for file, code in step.code:
        if file == YOURS:
            tree = ast.parse(code)
            arguments = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
            functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
            known |= names_of(tree, ast.Store) | arguments | functions
            assert names_of(tree, ast.Load) <= known
            assert not names_of(tree, ast.Load) & {"tour", "both", "Seen"}
            assert not re.search(r"\.value\b", code)


def a_step(tour: Any) -> Any:
    worker, name = tour.worker("--concurrency=1"), tour.name("a-name")
    tour.events.wait("started")
    first = basic.add.apply_async((1, 1), queue=worker.queue)
    times = tour.noted(name)
    worker.stop()
    return {
        "result": tour.backend.result(first).map(lambda result: result + 1),
        "state": tour.backend.reaches(first, "SUCCESS"),
        "answer": tour.inspect("ping", worker.name),
        "times": times,
    }


def test_the_tours_helpers_are_shown_as_celerys_api_and_evidence_is_left_out() -> None:
    _, code = calls_of(a_step)
    assert code.splitlines() == [
        "# celery -A celery_app worker -Q lesson --concurrency=1",
        'first = basic.add.apply_async((1, 1), queue="lesson")',
        "# the worker is stopped",
        "first.get(timeout=30)",
        "first.state",
        'app.control.inspect(["worker@host"]).ping()["worker@host"]',
    ]


@pytest.mark.parametrize(
    "file", sorted((ROOT / "services/celery/tour/lessons").glob("*.py")), ids=lambda file: file.stem
)
def test_no_lesson_makes_its_own_evidence(file: Path) -> None:
    """Evidence is read by tour/backend.py, broker.py, events.py …; a lesson may only draw conclusions from it."""
    calls = [node.func for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    assert not [call for call in calls if isinstance(call, ast.Name) and call.id == "Seen"]


@pytest.mark.parametrize("sabotage", SABOTAGES, ids=lambda sabotage: sabotage.lesson)
def test_each_change_that_must_make_a_lesson_fail_can_be_made(sabotage: Sabotage) -> None:
    assert (ROOT / "services/celery" / sabotage.file).read_text().count(sabotage.old) == 1
    found = {name for step in LESSONS[sabotage.lesson].steps for name in step.expect}
    assert not sabotage.finding or sabotage.finding in found


def test_no_lesson_changes_the_current_app() -> None:
    """A signature that is read from JSON belongs to the current app."""
    assert current_app.main == "celery_app"


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
        (evidence.matching("^low@", "a text"), ["low@x"], ["high@x", ""]),
        (evidence.worker_of("low"), ["low@x"], ["high@x", "lower@x", ""]),
        (evidence.error("KeyError", "(x)"), ["KeyError: no (x)", "a <class 'KeyError'> (x)"], ["KeyError: y", "(x)"]),
    ],
    ids=lambda value: value.words if isinstance(value, Check) else "",
)
def test_a_check_holds_and_fails(check: Check, holds: list[Any], fails: list[Any]) -> None:
    assert all(check.holds(value) for value in holds)
    assert not any(check.holds(value) for value in fails)


@pytest.mark.parametrize(("lesson", "step"), STEPS)
def test_what_must_be_seen_is_said_in_words(lesson: Lesson, step: Step) -> None:
    """No regular expression: those are for the program."""
    for name, check in step.expect.items():
        assert check.exact or not re.search(r"[\\^$*|`]|\.[+*]|matches", check.words), name


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


# --- The terminal ---

NODE = "low@ip-10-11-12-13.eu-central-1.compute.internal"
ERROR = "AwayError('the service at payments.internal:8443 does not answer, and it will be tried again later')"
TEXTS: dict[
    str, dict[str, Any]
] = {  # what an event of each type shows besides its task, its state and where it happened
    "sent": {"queue": "low-tour-a1b2c3-7", "eta": "2026-01-01T12:34:56+00:00"},
    "received": {"eta": "2026-01-01T12:34:56+00:00"},
    "started": {},
    "succeeded": {"result": "'" + "a sentence as a result, " * 6 + "'"},
    "failed": {"exception": ERROR},
    "retried": {"exception": ERROR},
    "revoked": {"terminated": True},
    "rejected": {},
}


def printed(width: int) -> tuple[Console, io.StringIO]:
    """A console without a terminal, and what it prints."""
    file = io.StringIO()
    return Console(file=file, width=width), file


def compact(text: str) -> str:
    """A text without spaces, which may be folded anywhere."""
    return "".join(text.split())


@pytest.mark.parametrize("width", [80, 120])
def test_no_row_of_an_event_is_cut_or_too_wide(width: int) -> None:
    for kind, fields in TEXTS.items():
        terminal, file = printed(width)
        name = "tour.tasks.practices.call_at_fixed_times"
        terminal.print(show.timeline(Event(kind, 2.5, "0123456789abcdef", name, NODE, fields), since=1.25))
        text = file.getvalue()
        assert max(map(len, text.splitlines())) <= width, text
        assert "…" not in text
        for part in (show.STATES[kind][0], "practices.call_at_fixed_times", "01234567", *map(str, fields.values())):
            if part not in ("True", "2026-01-01T12:34:56+00:00"):
                assert compact(part) in compact(text), text
        if "eta" in fields:
            assert "due12:34:56" in compact(text)
        if kind != "sent":
            assert "low@ip-10-11" in text
            assert "compute.internal" not in text


@pytest.mark.parametrize("width", [80, 120])
def test_no_evidence_is_cut_or_too_wide(width: int) -> None:
    terminal, file = printed(width)
    screen = show.Screen(terminal, pause=False)
    check, long = evidence.worker_of("low"), "a long name of what was seen " * 3
    found = [Finding(long, check, value, "source") for value in (NODE, 7, ["received", "started", "succeeded"] * 3)]
    step = step_expecting(result=4)
    screen.result(step, Outcome(found, f"timed out waiting for {long}", unavailable=f"not running: {long}"))
    text = file.getvalue()
    assert max(map(len, text.splitlines())) <= width, text
    assert "…" not in text
    for finding in found:
        assert compact(f"{long}: {show.value(finding.value)} (must be: {check.words})") in compact(text)
    assert compact(f"waiting for {long}") in compact(text)
    assert compact(f"not running: {long}") in compact(text)


@pytest.mark.parametrize("lesson", LESSONS.values(), ids=LESSONS)
def test_headings_code_and_sentences_of_a_lesson_fit_80_columns(lesson: Lesson) -> None:
    terminal, file = printed(80)
    screen = show.Screen(terminal, pause=False)
    screen.lesson(lesson)
    for number, step in enumerate(lesson.steps, 1):
        screen.step(number, len(lesson.steps), step)
        screen.result(step, Outcome())
    screen.summary([(lesson, [Outcome(error="none")], 12.3)])
    text = file.getvalue()
    assert max(map(len, text.splitlines())) <= 80, text
    for step in lesson.steps:
        assert step.code[-1][0] in text
        assert compact(step.title) in compact(text)
        assert compact(step.learn) in compact(text)
        for _, code in step.code:
            assert compact(code) in compact(text)


def summary(outcomes: dict[str, list[Outcome]], width: int = 80, following: Lesson | None = None) -> str:
    terminal, file = printed(width)
    show.Screen(terminal, pause=False).summary(
        [(LESSONS[name], steps, 12.3) for name, steps in outcomes.items()], following
    )
    return file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_a_whole_tour_ends_with_a_table_that_is_not_cut(width: int) -> None:
    text = summary({name: [Outcome(error="why")] for name in LESSONS}, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for name, lesson in LESSONS.items():
        assert re.search(rf"^{name} +{lesson.concept} +1 +FAILED +12.3 s$", text, re.MULTILINE)


def test_each_failure_is_repeated_at_the_end_with_its_reason() -> None:
    wrong = Finding("result", evidence.equal(30), 31, "source")
    right = Finding("last to start", evidence.equal("total"), "total", "source")
    text = summary(
        {
            "calling": [Outcome()],
            "chords": [Outcome(), Outcome([wrong, right])],
            "eta": [Outcome(error="timed out waiting for the end")],
        }
    )
    _, end = text.split("in total.")
    assert compact(end) == compact(
        f"FAILED chords: {LESSONS['chords'].steps[1].title} ✗ result: 31 (must be: 30) · from source"
        f"FAILED eta: {LESSONS['eta'].steps[0].title} ✗ timed out waiting for the end"
    )


def test_a_lesson_run_alone_ends_with_the_next_one() -> None:
    assert "Next: make tour LESSON=groups\n      Tasks in parallel\n" in summary({}, following=LESSONS["groups"])
    assert "Next" not in summary({})


def test_the_next_lesson_is_the_one_after_the_last_that_ran() -> None:
    names = list(LESSONS)
    assert program.following(names[:1]) is LESSONS[names[1]]
    assert program.following(names[3:5]) is LESSONS[names[5]]
    assert program.following(names[-1:]) is None
    assert program.following(names) is None, "a whole tour"


def test_a_whole_tour_begins_with_a_few_lines_and_the_list_is_shown_when_asked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    terminal, file = printed(80)
    show.welcome(CONCEPTS, terminal)
    text = file.getvalue()
    assert len(text.splitlines()) <= 6
    assert f"{len(LESSONS)} lessons" in text
    assert "make tour LESSON=list" in text
    assert program.main(["list"]) == 0
    listed = capsys.readouterr().out
    assert max(map(len, listed.splitlines())) <= 80
    for concept in CONCEPTS:
        assert f"{concept.title}: LESSON={concept.page}\n" in listed
        for lesson in concept.lessons:
            assert compact(f"{lesson.name} {lesson.title}") in compact(listed)


def test_an_unknown_lesson_is_an_error_that_says_where_the_known_ones_are() -> None:
    with pytest.raises(SystemExit, match="no lesson 'cords'; make tour LESSON=list shows all lessons"):
        program.main(["cords"])


def test_an_address_is_printed_whole_on_its_own_line() -> None:
    terminal, file = printed(80)
    address = "http://127.0.0.1:3000/explore?panes=" + "x" * 200
    found = [Finding("open", evidence.matching("^http", "an address"), address, "Grafana")]
    show.Screen(terminal, pause=False).result(step_expecting(open=1), Outcome(found))
    assert address in [line.strip() for line in file.getvalue().splitlines()]


def test_the_end_of_a_long_value_is_shown_as_well() -> None:
    text = show.value("Traceback: " + "x" * 500 + " RuntimeError: why")
    assert text.startswith("Traceback")
    assert text.endswith("RuntimeError: why (529 characters)")


@pytest.mark.parametrize(("no_color", "colours"), [("", True), ("1", False)])
def test_no_color_is_honoured(no_color: str, colours: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    terminal = show.console()
    with terminal.capture() as captured:
        terminal.print("[red]text[/]")
    assert ("\x1b[31m" in captured.get()) == colours


@pytest.mark.parametrize(("columns", "width"), [("80", 80), (None, 120)])
def test_without_a_terminal_the_width_is_that_of_columns_or_120(
    columns: str | None, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    assert show.console().width == width


# --- Evidence that holds on a busy machine ---


def test_the_number_of_tasks_that_ran_at_the_same_time() -> None:
    def event(kind: str, at: float, task: str) -> Event:
        return Event(kind, at, task, "name", "worker", {})

    two = [event("started", 1, "a"), event("started", 2, "b"), event("succeeded", 3, "a"), event("failed", 4, "b")]
    one = [event("started", 1, "a"), event("succeeded", 2, "a"), event("started", 2.5, "b"), event("failed", 3, "b")]
    assert (at_once([]), at_once(one), at_once(two), at_once(two[::-1])) == (0, 1, 2, 2)


def test_the_delay_of_a_message_is_the_time_from_its_publish_to_its_eta() -> None:
    assert delay(Event("sent", 1000.0, "id", "name", "worker", {"eta": "1970-01-01T00:16:41.500000+00:00"})) == 1.5


@pytest.mark.parametrize(("lesson", "step"), STEPS)
def test_no_step_requires_that_something_was_quick(lesson: Lesson, step: Step) -> None:
    """Upper bounds in seconds are only for times that are stored, in a message or in Redis, and not measured."""
    stored = {"first delay", "second delay", "third delay", "expires after", "TTL"}
    for name, check in step.expect.items():
        if check.words.endswith(" s"):
            assert check.words.startswith("at least") or name in stored, name


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
    says = r"names the function that failed \| `.*Traceback.*` \| the result backend"
    assert re.search(rf"^\| traceback \| {says} \|$", written, re.MULTILINE)
    assert re.search(r"^\| state \| `'FAILURE'` \|  \| the result backend \|$", written, re.MULTILINE)


def test_no_page_is_written_from_a_tour_that_failed() -> None:
    step = {
        "lesson": "x",
        "step": "y",
        "error": "",
        "findings": {"result": {"value": 1, "holds": False, "source": "s"}},
    }
    with pytest.raises(ValueError, match="lesson x failed"):
        page.read(f"[{str(step).replace(chr(39), chr(34)).replace('False', 'false')}]")
