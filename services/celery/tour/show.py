"""The tour in the terminal: code, live events, evidence. Plain text if there is no terminal."""

import os
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from tour.events import Event
from tour.lesson import Concept, Lesson, Step
from tour.record import Finding, Outcome

WIDTH = 120  # columns where there is no terminal
MAX_LINES = 20  # of events in one step
MAX_VALUE = 200  # characters of a value; of a longer one the beginning and the end are shown
HOST = 8  # characters of a host's name: enough to find a container with `docker ps`
ORDERED_WITHIN = 0.15  # s: events come from several processes, and are put in order before they are shown

# The state that a task is in after an event.
STATES = {
    "sent": ("PENDING", "white"),
    "received": ("RECEIVED", "white"),
    "started": ("STARTED", "cyan"),
    "succeeded": ("SUCCESS", "green"),
    "failed": ("FAILURE", "red"),
    "retried": ("RETRY", "yellow"),
    "revoked": ("REVOKED", "magenta"),
    "rejected": ("REJECTED", "red"),
}


def console(stderr: bool = False) -> Console:
    """The terminal, or plain text of COLUMNS or 120 columns. NO_COLOR in the environment switches colours off."""
    console = Console(stderr=stderr)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = WIDTH
    return console


class Screen:
    """Prints the tour. Events are received in another thread, and printed in a thread of this class."""

    def __init__(self, console: Console, pause: bool) -> None:
        self._console = console
        self._pause = pause
        self._lock = threading.Lock()
        self._events: list[Event] = []
        self._shown = 0
        self._since = 0.0
        threading.Thread(target=self._show_events, daemon=True).start()

    def lesson(self, lesson: Lesson) -> None:
        """The heading of a lesson."""
        self._console.print()
        self._console.rule(f"[bold]{lesson.name}[/] · {lesson.concept}", align="left")
        self._console.print(f"{escape(lesson.title)}.", highlight=False)

    def step(self, number: int, of: int, step: Step) -> None:
        """The heading of a step and the code that it runs."""
        self._console.print(f"\n[bold]{number}/{of} {escape(step.title)}[/]\n", highlight=False)
        for file, code in step.code:
            self._console.print(f"  [dim]{escape(file)}[/]", highlight=False)
            syntax = Syntax(code, "python", theme="ansi_dark", background_color="default", word_wrap=True)
            self._console.print(Padding(syntax, (0, 0, 1, 4)))
        if self._pause:
            self._console.input("  [dim]Enter runs it, Ctrl-C ends the tour …[/] ")
        with self._lock:
            self._events, self._shown, self._since = [], 0, time.time()

    def event(self, event: Event) -> None:
        """Add an event of a task."""
        with self._lock:
            self._events.append(event)

    def progress(self, done: int, of: int) -> None:
        """A progress bar; without a terminal one line for each step."""
        bar = "█" * (done * 30 // of) + "░" * (30 - done * 30 // of)
        if self._console.is_terminal:
            self._console.print(f"           {bar} {done} of {of}", end="\n" if done == of else "\r", highlight=False)
        else:
            self._console.print(f"           {bar} {done} of {of}", highlight=False)

    def result(self, step: Step, outcome: Outcome) -> None:
        """Print what was seen and what must be seen."""
        time.sleep(ORDERED_WITHIN)  # for the last events
        self._show(older_than=0)
        with self._lock:
            if self._shown > MAX_LINES:
                self._print(f"           [dim]… and {self._shown - MAX_LINES} events more[/]")
            self._shown = MAX_LINES + 1  # later events belong to no step
        self._console.print()
        self._evidence(outcome)
        if outcome.unavailable:
            self._console.print(hanging("  [yellow]-[/]", f"[yellow]skipped: {escape(outcome.unavailable)}[/]"))
        self._console.print()
        self._console.print(hanging("  [bold]→[/]", f"[italic]{escape(step.learn)}[/]"))

    def _evidence(self, outcome: Outcome) -> None:
        for finding in outcome.findings:
            self._console.print(line(finding))
            if is_address(finding.value):
                self._print(f"    {escape(finding.value)}")  # not folded: it could not be opened
        if outcome.error:
            self._console.print(hanging("  [red]✗[/]", f"[red]{escape(outcome.error)}[/]"))

    def summary(self, outcomes: Iterable[tuple[Lesson, list[Outcome], float]], following: Lesson | None = None) -> None:
        """The table at the end; what failed and what was skipped, with the reason; and the lesson to run next."""
        outcomes = list(outcomes)
        table = Table(box=None, pad_edge=False)
        for column in ("Lesson", "Concept", "Steps", "Outcome"):
            table.add_column(column, overflow="fold")
        table.add_column("Time", justify="right")
        for lesson, steps, seconds in outcomes:
            table.add_row(lesson.name, lesson.concept, str(len(steps)), word(steps), f"{seconds:.1f} s")
        self._console.print()
        self._console.rule(align="left")
        self._console.print(table)
        self._console.print(f"\n{sum(seconds for *_, seconds in outcomes):.0f} s in total.", highlight=False)
        for lesson, steps, _ in outcomes:
            for step, outcome in zip(lesson.steps, steps, strict=False):  # a failed step is the last
                if outcome.failed:
                    self._console.print(f"\n[red]FAILED[/] {lesson.name}: {escape(step.title)}", highlight=False)
                    self._evidence(replace(outcome, findings=[each for each in outcome.findings if not each.holds]))
        skipped = {step.unavailable: lesson.name for lesson, steps, _ in outcomes for step in steps if step.unavailable}
        for why, name in skipped.items():
            self._console.print(hanging("[yellow]-[/]", f"{name}, in part: {escape(why)}", width=1))
        if following:
            self._console.print(f"\nNext: make tour LESSON={following.name}", highlight=False)
            self._console.print(f"      {escape(following.title)}", highlight=False)

    def _show_events(self) -> None:
        while True:
            time.sleep(ORDERED_WITHIN / 3)
            self._show(older_than=ORDERED_WITHIN)

    def _show(self, older_than: float) -> None:
        with self._lock:
            ripe = [event for event in self._events if event.at < time.time() - older_than]
            self._events = [event for event in self._events if event not in ripe]
            for event in sorted(ripe, key=lambda event: event.at):
                self._shown += 1
                if self._shown <= MAX_LINES:
                    self._console.print(timeline(event, self._since))

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)


def hanging(left: str, right: str, width: int = 3) -> Table:
    """Two columns: what does not fit on the line continues in the right one."""
    row = Table.grid(padding=(0, 1, 0, 0))
    row.add_column(width=width, no_wrap=True)
    row.add_column(overflow="fold")
    row.add_row(Text.from_markup(left), Text.from_markup(right))
    return row


def timeline(event: Event, since: float) -> Table:
    """An event: time, state, task, its result or another detail, and where."""
    state, colour = STATES.get(event.type, (event.type.upper(), "white"))
    where = f"→ {event.fields.get('queue')}" if event.type == "sent" else short_node(event.worker)
    name = event.name.removeprefix("tour.").removeprefix("tasks.")
    more = [f"[bold]{escape(shorten(text))}[/]"] if (text := detail(event)) else []
    rest = [f"{escape(name):<24}", f"[dim]{event.task[:8]}[/]", *more, f"[dim]{escape(where)}[/]"]
    return hanging(f"  {max(0.0, event.at - since):6.2f} s [{colour}]{state:<8}[/]", " ".join(rest), width=19)


def short_node(node: str) -> str:
    """A worker's name with the beginning of its host's, which in a container is 12 or more characters."""
    name, _, host = node.partition("@")
    return f"{name}@{host[:HOST]}"


def detail(event: Event) -> str:
    """The details of an event."""
    fields = event.fields
    match event.type:
        case "succeeded":
            return str(fields.get("result"))
        case "failed" | "retried":
            return str(fields.get("exception"))
        case "revoked":
            return "expired" if fields.get("expired") else "terminated" if fields.get("terminated") else ""
        case "sent" | "received" if fields.get("eta"):
            return f"due {fields['eta'][11:19]}"
    return ""


def shorten(text: str) -> str:
    """The text in one line; of a long one the beginning, the end, and its length."""
    text = " ".join(text.split())
    if len(text) <= MAX_VALUE:
        return text
    half = MAX_VALUE // 2
    return f"{text[:half]} […] {text[-half:]} ({len(text)} characters)"


def is_address(seen: Any) -> bool:
    """Whether a value is the address of a web page."""
    return isinstance(seen, str) and seen.startswith("http://")


def value(seen: Any) -> str:
    """A value as text."""
    if isinstance(seen, float):
        return f"{seen:.3g}"
    return shorten(seen if isinstance(seen, str) else repr(seen))


def line(finding: Finding) -> Table:
    """One line of evidence."""
    mark = "[green]✓[/]" if finding.holds else "[red]✗[/]"
    seen = "the address below" if is_address(finding.value) else value(finding.value)
    text = f"{escape(finding.name)}: [bold]{escape(seen)}[/]"
    if not finding.check.exact or not finding.holds:
        text += f" [dim](must be: {escape(finding.check.words)})[/]"
    return hanging(f"  {mark}", f"{text} [dim]· from {finding.source}[/]")


def word(steps: list[Outcome]) -> str:
    """The outcome of a lesson."""
    if any(step.failed for step in steps):
        return "[red]FAILED[/]"
    return "[yellow]in part[/]" if any(step.unavailable for step in steps) else "[green]ok[/]"


def welcome(concepts: Sequence[Concept], console: Console) -> None:
    """What a whole tour is, and how to choose from it."""
    lessons = sum(len(concept.lessons) for concept in concepts)
    console.print(
        f"{lessons} lessons on {len(concepts)} concepts of Celery, about five minutes. Ctrl-C ends the tour.\n"
        "  make tour LESSON=list      shows all lessons\n"
        "  make tour LESSON=chords    runs one lesson\n"
        "  make tour LESSON=canvas    runs the lessons of a concept\n"
        "  make tour PAUSE=1          waits for Enter before each step",
        highlight=False,
    )


def contents(concepts: Iterable[Concept], console: Console) -> None:
    """The list of lessons."""
    for concept in concepts:
        console.print(f"\n[bold]{concept.title}[/]: LESSON={concept.page}", highlight=False)
        for lesson in concept.lessons:
            console.print(hanging(f"  {lesson.name}", escape(lesson.title), width=20))
