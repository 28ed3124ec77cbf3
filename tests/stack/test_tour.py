"""The guided tour on the loaded stack: every lesson passes and leaves no data; and each lesson can fail."""

import json
import os
import pty
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from stack import inside as run
from stack.guide import Taken, command, tour
from stack.inside import Inside
from stack.poll import poll_until
from stack.sabotages import SABOTAGES, Sabotage
from stack.stack import PROJECT, ROOT, Stack, changed_app
from stack.web import Prometheus
from tour.lessons import LESSONS
from tour.waiting import PATIENCE


@pytest.fixture(scope="module")
def taken(tour_beside: "Future[Taken]") -> Taken:
    """The whole tour."""
    return tour_beside.result()


@pytest.mark.main
@pytest.mark.parametrize("name", LESSONS)
def test_the_lesson_holds(name: str, taken: Taken, stack: Stack) -> None:
    steps = [step for step in taken.steps if step["lesson"] == name]
    assert [step["step"] for step in steps] == [step.title for step in LESSONS[name].steps], taken.text[-3000:]
    for step in steps:
        assert not step["error"], step
        assert all(finding["holds"] for finding in step["findings"].values()), step
        if "flower" in stack.enabled:
            assert not step["unavailable"], step
        if step["unavailable"]:
            pytest.skip(f"{step['step']}: {step['unavailable']}")


@pytest.mark.main
def test_the_tour_succeeds_with_a_table_of_all_lessons(taken: Taken) -> None:
    assert taken.exit_code == 0
    summary = taken.text[taken.text.rindex("Outcome") :]
    for name in LESSONS:
        assert re.search(rf"^{name} +.* (ok|in part) +[\d.]+ s *$", summary, re.MULTILINE), name


@pytest.mark.main
def test_the_load_continued_and_no_worker_was_disturbed(taken: Taken, prometheus: Prometheus) -> None:
    assert taken.published > taken.seconds, "the producer sends some five messages a second"
    assert taken.workers[0] == taken.workers[1]
    assert not prometheus.query('ALERTS{alertstate="firing"}')


DYING = ("tasks.advanced.ask_by_hand", "tour.tasks.practices.call_at_fixed_times")  # lessons of their dead letters


def left_behind(inside: Inside) -> list[str]:
    """Keys of both Redis that a tour has written, and its dead letters."""
    password = (ROOT / "secrets/redis_exporter_password").read_text().strip()
    found = [key for host in ("redis", "redis-results") for key in inside.call(run.keys, host, "exporter", password)]
    ours = [key for key in found if key.startswith("tour:") or "low-tour" in key]
    return ours + [letter["task"] for letter in inside.call(run.dead_letters) if letter["task"] in DYING]


@pytest.mark.main
def test_the_tour_leaves_nothing_behind(taken: Taken, inside: Inside) -> None:
    assert taken.exit_code == 0
    assert left_behind(inside) == []


def test_one_lesson_as_plain_text(stack: Stack) -> None:
    done = tour(stack, "chords")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    for line in (
        r"1/2 The callback gets the results once all members have ended",
        r"    return chord\(squares\(numbers\), total\.s\(\)\)",  # the code that runs
        r" \d\.\d\d s SUCCESS +workflows\.total +[0-9a-f]{8} 30 low@\w{8}$",  # what happened, when and where
        r"✓ result: 30 · from the result backend",
        r"→ +A chord is a group with a callback",
        r"^Next: make tour LESSON=nested-canvas$",
    ):
        assert re.search(line, done.stdout, re.MULTILINE), line


def test_a_page_of_lessons(stack: Stack) -> None:
    done = tour(stack, "signatures")
    assert done.returncode == 0, done.stdout
    assert re.findall(r"^(\S+) +Signatures +\d +ok", done.stdout, re.MULTILINE) == [
        "partials",
        "signature-options",
        "links",
    ]


def test_an_unknown_lesson_is_an_error_that_says_where_the_known_ones_are(stack: Stack) -> None:
    done = tour(stack, "cords")
    assert done.returncode == 1
    assert done.stderr.strip() == "LESSON: no lesson 'cords'; make tour LESSON=list shows all lessons"


def test_pause_needs_a_terminal(stack: Stack) -> None:
    done = tour(stack, "chords", PAUSE="1")
    assert done.returncode == 2
    assert "PAUSE=1 needs a terminal" in done.stderr


class Terminal:
    """A command in a terminal."""

    def __init__(self, command: list[str]) -> None:
        self._main, side = pty.openpty()
        self.process = subprocess.Popen(command, stdin=side, stdout=side, stderr=side, start_new_session=True)
        os.close(side)
        os.set_blocking(self._main, False)
        self.text = ""

    def read(self) -> str:
        """All output so far."""
        try:
            while chunk := os.read(self._main, 65536):
                self.text += chunk.decode(errors="replace")
        except OSError:  # nothing more for now, or the command has ended
            pass
        return self.text

    def type(self, text: str) -> None:
        """Type on the keyboard."""
        os.write(self._main, text.encode())

    def wait(self, timeout: float) -> int:
        """The exit code, once it has ended."""
        poll_until(lambda: self.read() is not None and self.process.poll() is not None, "the tour to end", timeout)
        return self.process.wait()


@contextmanager
def terminal(command: list[str]) -> Iterator[Terminal]:
    """A command in a terminal; ended after the test."""
    terminal = Terminal(command)
    try:
        yield terminal
    finally:
        terminal.process.kill()
        terminal.process.wait()
        print(terminal.read())  # pytest shows it when the test fails


def wait_for(screen: Terminal, text: str, times: int) -> None:
    """Wait until a text was printed so many times."""
    poll_until(lambda: screen.read().count(text) == times, f"{text!r} printed {times} times", 30)


def test_pause_waits_for_enter_before_each_step(stack: Stack) -> None:
    with terminal(command(stack, "chords", tty=True, PAUSE="1")) as screen:
        for number in (1, 2):
            wait_for(screen, "Enter runs it", number)
            assert ("A chord is a group with a callback" in screen.text) == (number == 2)
            screen.type("\n")
        assert screen.wait(30) == 0
        assert "\x1b[" in screen.text, "colours in a terminal"


def test_ctrl_c_leaves_nothing_behind(stack: Stack, inside: Inside) -> None:
    with terminal(command(stack, "stopping", tty=True)) as screen:
        poll_until(lambda: "STARTED" in screen.read(), "a task that runs at a worker of the lesson's own", 30)
        screen.type("\x03")
        poll_until(lambda: "cleaning up" in screen.read(), "the tour to notice", 10)
        screen.type("\x03")  # a second Ctrl-C does not interrupt the clean-up
        assert screen.wait(30) == 130
    assert left_behind(inside) == []


@pytest.mark.disruptive
def test_a_missing_service_is_named_with_what_to_do(stack: Stack) -> None:
    with stack.stopped("worker-low"):
        done = tour(stack, "chords")
        assert done.returncode == 1
        assert "no worker consumes the queue `low`: make up, or make scale LOW=1" in done.stderr
    with stack.stopped("redis"):
        done = tour(stack, "chords")
        assert done.returncode == 1
        assert re.search(r"tour: redis does not answer .*: make logs S=redis", done.stderr)


SOONER = 30  # s that a sabotaged lesson waits, in place of PATIENCE


@pytest.fixture(scope="module")
def sabotaged(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Tours of the sabotaged lessons with the sabotaged code, which their worker has as well."""
    changes = [(sabotage.file, sabotage.old, sabotage.new) for sabotage in SABOTAGES]
    sooner = ("tour/waiting.py", f"PATIENCE = {PATIENCE}", f"PATIENCE = {SOONER}")
    app = changed_app(tmp_path_factory.mktemp("sabotaged"), [*changes, sooner])
    name = f"{PROJECT}-sabotaged"
    worker = ["celery", "-A", "celery_app", "worker", "-Q", "high,low", "-n", "low@%h", "--concurrency=4"]
    lessons = [sabotage.lesson for sabotage in SABOTAGES]
    halves = lessons[::2], lessons[1::2]
    with stack.stopped("worker-high", "worker-low", "producer", "beat"):
        stack.start_client(name, *worker, options=[f"--volume={app}:/app:ro"])
        try:
            poll_until(lambda: stack.inside.call(run.inspect, "ping"), "the sabotaged worker to answer", 40)
            with ThreadPoolExecutor() as pool:  # at once, since lessons mostly wait
                tours = list(pool.map(lambda half: tour(stack, "--json", *half, app=app), halves))
        finally:
            stack.docker.container.kill(name)
    for done in tours:
        assert done.returncode == 1, done.stderr[-3000:]
    return [step for done in tours for step in json.loads(done.stdout)]


@pytest.mark.disruptive
@pytest.mark.parametrize("sabotage", SABOTAGES, ids=lambda sabotage: sabotage.lesson)
def test_the_lesson_fails_when_what_it_shows_is_not_true(sabotage: Sabotage, sabotaged: list[dict[str, Any]]) -> None:
    steps = [step for step in sabotaged if step["lesson"] == sabotage.lesson]
    wrong = {name for step in steps for name, finding in step["findings"].items() if not finding["holds"]}
    if sabotage.finding:
        assert sabotage.finding in wrong, steps
    else:
        assert f"timed out after {SOONER} s" in steps[-1]["error"], steps
