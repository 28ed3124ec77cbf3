"""The tour in the terminal: code, live events, evidence. Plain text if there is no terminal."""

import threading
import time
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.syntax import Syntax
from rich.table import Table

from tour.events import Event
from tour.lesson import Concept, Lesson, Step
from tour.record import Finding, Outcome

MAX_LINES = 20  # of events in one step
MAX_VALUE = 110  # characters
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
        for finding in outcome.findings:
            self._print(f"  {line(finding)}")
        if outcome.error:
            self._print(f"  [red]✗ {escape(outcome.error)}[/]")
        if outcome.unavailable:
            self._print(f"  [yellow]- skipped: {escape(outcome.unavailable)}[/]")
        self._console.print(f"\n  [bold]→[/] [italic]{escape(step.learn)}[/]", highlight=False)

    def summary(self, outcomes: Iterable[tuple[Lesson, list[Outcome], float]]) -> None:
        """The table at the end, and what was skipped, with the reason."""
        table = Table(box=None, pad_edge=False)
        for column in ("Lesson", "Concept", "Steps", "Outcome"):
            table.add_column(column)
        table.add_column("Time", justify="right")
        total, skipped = 0.0, {}
        for lesson, steps, seconds in outcomes:
            total += seconds
            skipped.update({step.unavailable: lesson.name for step in steps if step.unavailable})
            table.add_row(lesson.name, lesson.concept, str(len(steps)), word(steps), f"{seconds:.1f} s")
        self._console.print()
        self._console.rule(align="left")
        self._console.print(table)
        self._console.print(f"\n{total:.0f} s in total.", highlight=False)
        for why, name in skipped.items():
            self._print(f"{name}, in part: {escape(why)}")

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
                    text = timeline(event, self._since)
                    self._console.print(text, highlight=False, no_wrap=True, overflow="ellipsis")

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)


def timeline(event: Event, since: float) -> str:
    """An event as one line: time, task, state, worker, details."""
    state, colour = STATES.get(event.type, (event.type.upper(), "white"))
    where = f"→ {event.fields.get('queue')}" if event.type == "sent" else event.worker
    columns = [
        f"  {max(0.0, event.at - since):6.2f} s ",
        f"{escape(event.name.removeprefix('tasks.')):<27}[dim]{event.task[:8]}[/] ",
        f"[{colour}]{state:<8}[/] ",
        f"{escape(shorten(where, 34)):<34}",
        escape(shorten(detail(event), 46)),
    ]
    return " ".join(columns).rstrip()


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


def shorten(text: str, length: int = MAX_VALUE) -> str:
    """The text in one line, truncated to a length."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"


def value(seen: Any) -> str:
    """A value as text."""
    if isinstance(seen, float):
        return f"{seen:.3g}"
    return shorten(seen if isinstance(seen, str) else repr(seen))


def line(finding: Finding) -> str:
    """One line of evidence."""
    mark = "[green]✓[/]" if finding.holds else "[red]✗[/]"
    text = f"{mark} {escape(finding.name)}: [bold]{escape(value(finding.value))}[/]"
    if not finding.check.exact or not finding.holds:
        text += f" [dim](must be: {escape(finding.check.words)})[/]"
    return f"{text} [dim]· {finding.source}[/]"


def word(steps: list[Outcome]) -> str:
    """The outcome of a lesson."""
    if any(step.failed for step in steps):
        return "[red]FAILED[/]"
    return "[yellow]in part[/]" if any(step.unavailable for step in steps) else "[green]ok[/]"


def contents(concepts: Iterable[Concept], console: Console) -> None:
    """The list of lessons."""
    for concept in concepts:
        console.print(f"\n[bold]{concept.title}[/] [dim]{concept.page}[/]", highlight=False)
        for lesson in concept.lessons:
            console.print(f"  {lesson.name:<18} {escape(lesson.title)}", highlight=False)
