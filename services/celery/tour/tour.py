"""What a step gets: the sources of its evidence, processes, and unique names."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

from celery.result import AsyncResult, GroupResult
from redis import RedisError

from celery_app import app, durable
from tasks.notes import key
from tour import events, sources, waiting
from tour.app import PREFIX, dead_letters_of, private_queue, unacked_keys
from tour.backend import Backend
from tour.broker import Broker
from tour.events import Events
from tour.evidence import Seen
from tour.processes import Beat, Process, Worker

SETTLES_WITHIN = 5  # s for running tasks when a tour ends; later results expire


class Tour:
    """One tour. All that it creates has its name, and `clean` removes it."""

    elapsed = staticmethod(events.elapsed)
    at_once = staticmethod(events.at_once)
    delay = staticmethod(events.delay)
    until = staticmethod(waiting.until)
    returned = staticmethod(sources.returned)
    raised = staticmethod(sources.raised)
    printed = staticmethod(sources.printed)
    due = staticmethod(sources.due)
    seconds_until = staticmethod(sources.seconds_until)
    noted = staticmethod(sources.noted)
    redis = staticmethod(sources.redis)
    inspect = staticmethod(sources.inspect)
    pool_size = staticmethod(sources.pool_size)
    replied = staticmethod(sources.replied)
    counted = staticmethod(sources.counted)

    def __init__(self, show_progress: Callable[[int, int], None]) -> None:
        self.backend, self.broker, self.events, self.flower = Backend(), Broker(), Events(), sources.Flower()
        self._show_progress = show_progress
        self._run = uuid4().hex[:6]
        self._folder = TemporaryDirectory(prefix="tour-")
        self._names: set[str] = set()
        self._workers: dict[str, Worker] = {}
        self._running: list[Process] = []
        self._stopped: list[Process] = []

    @property
    def folder(self) -> Path:
        """The folder for files of the tour."""
        return Path(self._folder.name)

    # --- More evidence from the backend ---

    def all_results(self, group: GroupResult) -> Seen[list[Any]]:
        """What each member of a group returned, in the group's order."""
        return Seen([self.backend.result(member).value for member in group.results], "the result backend")

    def fate(self, queue: str, task: str) -> Seen[str]:
        """How a message of a private queue ended: what its task returned, or why it is a dead letter."""

        def ended() -> str:
            if (meta := self.backend.now(task))["status"] == "SUCCESS":
                return f"returned {meta['result']}"
            with durable.raw_broker() as client:
                letters = [each for each in dead_letters_of(queue).read(client) if each.task_id == task]
            return f"dead letter ({letters[0].reason}): {letters[0].error}" if letters else ""

        return Seen(self.until(ended, f"the message of task {task} to end"), "the result backend, the dead letters")

    def progress(self, task: AsyncResult) -> Seen[list[int]]:
        """The steps that tasks.advanced.progress reports while it runs; the screen shows them."""
        seen: list[int] = []

        def ended() -> bool:
            meta = self.backend.now(task)
            if meta["status"] == "PROGRESS" and meta["result"]["done"] not in seen:
                seen.append(meta["result"]["done"])
                self._show_progress(meta["result"]["done"], meta["result"]["steps"])
            return bool(meta["status"] == "SUCCESS")

        self.until(ended, "the last step")
        self._show_progress(steps := self.backend.now(task)["result"]["steps"], steps)
        return Seen(seen, "the result backend")

    # --- Names, queues and processes of the tour ---

    def name(self, what: str) -> str:
        """A unique name for notes and keys of tasks (tasks/notes.py)."""
        name = f"{self._run}-{len(self._names)}-{what}"
        self._names.add(name)
        return name

    def queue(self) -> str:
        """A new private queue of the tour, without consumers."""
        name = f"{PREFIX}{self._run}-{len(self.events.queues)}"
        app.amqp.queues.add(private_queue(name))
        self.events.queues.add(name)
        self._names.add(name)
        return name

    def worker(self, *options: str, queue: str = "", again: bool = False, **more: Any) -> Worker:
        """A ready worker with these options of `celery worker`, on a private queue.

        Within a lesson the same options return the same worker, unless `again`. For `more` see tour/processes.py.
        """
        kind = repr((options, queue, more))
        if again or kind not in self._workers:
            number = len(self._running) + len(self._stopped)
            name = f"tour-{self._run}-{number}"
            worker = Worker(name, queue or self.queue(), self.folder / f"{name}.log", options, **more)
            self._running.append(worker)
            worker.wait_ready()
            self._workers[kind] = worker
        return self._workers[kind]

    def beat(self, schedule: str, queue: str, state: str, **more: Any) -> Beat:
        """A beat with the schedule of a function of tour/schedules.py and its state in a file of this name."""
        number = len(self._running) + len(self._stopped)
        beat = Beat(queue, self.folder / f"beat-{number}.log", self.folder / state, schedule=schedule, **more)
        self._running.append(beat)
        beat.wait_ready()
        return beat

    # --- The end ---

    def end_lesson(self) -> None:
        """Stop the lesson's processes, and remove its dead letters before they trigger an alert."""
        self._stop_processes()
        with suppress(RedisError):  # `clean` tries again
            self._drop_dead_letters()

    def _stop_processes(self) -> None:
        """Ask them to end, without waiting."""
        for process in self._running:
            process.stop()
        self._stopped += self._running
        self._running, self._workers = [], {}

    def _drop_dead_letters(self) -> None:
        with durable.raw_broker() as client:
            for letter in durable.dead_letters.read(client):
                if letter.task_id in self.events.ours:
                    durable.dead_letters.take(client, letter)

    def clean(self) -> None:
        """End the tour's processes and remove all that it has created. Raises RedisError if Redis is unavailable."""
        try:
            self._stop_processes()
            for process in self._stopped:
                process.reap()
            self._folder.cleanup()
            self.events.settle(SETTLES_WITHIN)
            self.events.stop()
        finally:
            self._clean_redis()

    def _clean_redis(self) -> None:
        results, broker = durable.store, durable.broker
        ticks = [durable.ticks.key(f"tick-{queue}") for queue in self.events.queues]
        notes = [key(f"{name}{more}") for name in self._names for more in ("", "-first")]
        tasks = [name for task in self.events.ours for name in (f"celery-task-meta-{task}", key(task))]
        for name in (*ticks, *notes, *tasks):
            results.delete(name)
        revoked = durable.broker_key("revoked")
        ours = {f"id:{task}" for task in (*self.events.ours, sources.REVOKED)}
        for member in broker.zrange(revoked, 0, -1):
            if member in ours or member.startswith(sources.REVOKED_STAMP):
                broker.zrem(revoked, member)
        for queue in self.events.queues:
            bindings = [f"_kombu.binding.{queue}", f"_kombu.binding_permanent.{queue}"]
            letters = dead_letters_of(queue)
            own = [*unacked_keys(queue).values(), durable.delayed_key(queue), letters.key, letters.stats_key]
            broker.delete(*durable.priority_lists(queue), *own, *bindings)
        self._drop_dead_letters()
