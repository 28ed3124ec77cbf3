"""Evidence from the event stream: the events of the tour's own tasks."""

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from celery import signals
from celery.result import AsyncResult

from celery_app import app
from tour.backend import id_of
from tour.evidence import Seen
from tour.waiting import PATIENCE, TookTooLongError, until

ENDED = ("succeeded", "failed", "revoked", "rejected")


@dataclass(frozen=True)
class Event:
    """An event of a task, sent by a worker or a publisher."""

    type: str  # sent, received, started, succeeded, failed, retried, revoked, rejected
    at: float  # epoch s
    task: str
    name: str
    worker: str  # node name; for `sent` the publisher's
    fields: dict[str, Any] = field(repr=False)


def elapsed(first: Event, last: Event) -> float:
    """Seconds from one event to another."""
    return last.at - first.at


def at_once(events: list[Event]) -> int:
    """The largest number of tasks that ran at the same time, from their events `started` and those of their ends."""
    running, most = set[str](), 0
    for event in sorted(events, key=lambda event: event.at):
        if event.type == "started":
            running.add(event.task)
        elif event.type in ENDED:
            running.discard(event.task)
        most = max(most, len(running))
    return most


def delay(sent: Event) -> float:
    """Seconds from the publish of a message to its ETA."""
    return datetime.fromisoformat(sent.fields["eta"]).timestamp() - sent.at


class Events:
    """Receives events in a thread, from `start` to `stop`."""

    def __init__(self) -> None:
        self.ours: set[str] = set()  # ids of the tasks that the tour has published, and of their descendants
        self.queues: set[str] = set()  # private queues: all of their tasks belong to the tour
        self._published_at: dict[str, float] = {}
        self._names: dict[str, str] = {}
        self._all: list[Event] = []
        self._begun = 0
        self._listener: Callable[[Event], None] = lambda event: None
        self._changed = threading.Condition()
        self._listening = threading.Event()
        self._receiver = app.events.Receiver(app.connection_for_read(), handlers={"*": self._received})

    def start(self) -> None:
        """Start receiving; returns once events arrive."""
        signals.before_task_publish.connect(self._publishing)
        threading.Thread(target=self._receiver.run, kwargs={"wakeup": False}, daemon=True).start()
        with app.events.default_dispatcher() as dispatcher:
            until(lambda: dispatcher.send("tour-begins") or self._listening.wait(0.1), "the event stream")

    def stop(self) -> None:
        """Stop receiving."""
        signals.before_task_publish.disconnect(self._publishing)
        self._receiver.should_stop = True

    def begin(self, listener: Callable[[Event], None]) -> None:
        """Begin a step: `wait` returns only events from now on, and `listener` is called for them."""
        with self._changed:
            self._begun, self._listener = len(self._all), listener

    def wait(
        self,
        *types: str,
        of: Iterable[AsyncResult | str] | None = None,
        name: str | None = None,
        count: int = 1,
        timeout: float = PATIENCE,
    ) -> Seen[list[Event]]:
        """The events of this step with these types (of these tasks, of tasks with this name) by time, once there are
        `count`."""
        tasks = None if of is None else {id_of(task) for task in of}

        def matching() -> list[Event]:
            return [
                event
                for event in self._all[self._begun :]
                if event.type in types
                and (tasks is None or event.task in tasks)
                and (name is None or event.name == name)
            ]

        with self._changed:
            if not self._changed.wait_for(lambda: len(matching()) >= count, timeout):
                raise TookTooLongError(
                    f"timed out after {timeout:g} s: {count} events {'/'.join(types)} expected, {len(matching())} came"
                )
            return Seen(sorted(matching(), key=lambda event: event.at), "the workers' events")

    def path(self, task: AsyncResult | str) -> Seen[list[str]]:
        """The types of all events of a task by time, once it has ended."""
        self.wait(*ENDED, of=[task])
        self.wait("sent", of=[task])  # sent after the publish: a fast worker may have ended the task by then
        with self._changed:
            found = [event for event in self._all if event.task == id_of(task)]
        return Seen([event.type for event in sorted(found, key=lambda event: event.at)], "the workers' events")

    def settle(self, timeout: float) -> None:
        """Wait up to `timeout` for the end of all running tasks."""
        with self._changed:
            self._changed.wait_for(lambda: not (self.ours - self._ended()), timeout)

    def _ended(self) -> set[str]:
        return {event.task for event in self._all if event.type in ENDED}

    def _publishing(self, headers: dict[str, Any], **_: Any) -> None:
        self.ours.add(headers["id"])
        self._published_at.setdefault(headers["id"], time.time())

    def _received(self, event: dict[str, Any]) -> None:
        self._listening.set()
        kind, _, what = event["type"].partition("-")
        if kind != "task" or "uuid" not in event:
            return
        task = event["uuid"]
        if event.get("root_id") in self.ours or event.get("queue") in self.queues:
            self.ours.add(task)
        if task not in self.ours:
            return
        self._names.setdefault(task, event.get("name") or "?")
        at = event["timestamp"]
        if what == "sent":
            at = self._published_at.pop(task, at)
        seen = Event(what, at, task, self._names[task], event["hostname"], event)
        with self._changed:
            self._all.append(seen)
            self._changed.notify_all()
        self._listener(seen)
