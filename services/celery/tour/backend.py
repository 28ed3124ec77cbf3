"""Evidence from the result backend."""

from collections.abc import Iterable
from typing import Any

from celery import states
from celery.result import AsyncResult

from celery_app import app, durable
from tour.evidence import Seen
from tour.waiting import describe, until


def id_of(task: AsyncResult | str) -> str:
    """A task's id."""
    return task if isinstance(task, str) else str(task.id)


class Backend:
    """What the result backend stores about a task."""

    def meta(self, task: AsyncResult | str, field: str) -> Seen[Any]:
        """One field, once the task has ended: status, name, worker, queue, retries, traceback …"""
        until(lambda: self.now(task)["status"] in states.READY_STATES, f"task {id_of(task)} to end")
        return Seen(self.now(task).get(field), "the result backend")

    def result(self, task: AsyncResult | str) -> Seen[Any]:
        """Its result, or its exception as text, once it has ended."""
        result = self.meta(task, "result")
        return result.map(describe) if isinstance(result.value, BaseException) else result

    def state(self, task: AsyncResult | str) -> Seen[str]:
        """Its current state."""
        return Seen(self.now(task)["status"], "the result backend")

    def reaches(self, task: AsyncResult | str, state: str) -> Seen[str]:
        """Its state, once it is `state`."""
        until(lambda: self.now(task)["status"] == state, f"task {id_of(task)} in state {state}", interval=0.005)
        return Seen(state, "the result backend")

    def states(self, task: AsyncResult | str) -> Seen[list[str]]:
        """Each state from now until it has ended."""
        seen: list[str] = []

        def ended() -> bool:
            state = self.now(task)["status"]
            if state not in seen[-1:]:
                seen.append(state)
            return state in states.READY_STATES

        until(ended, f"task {id_of(task)} to end", interval=0.005)
        return Seen(seen, "the result backend")

    def stored(self, task: AsyncResult | str) -> Seen[bool]:
        """Whether the backend stores anything about it."""
        return Seen(bool(durable.store.exists(f"celery-task-meta-{id_of(task)}")), "the result backend")

    def count_stored(self, tasks: Iterable[AsyncResult]) -> Seen[int]:
        """Of how many tasks the backend stores something."""
        return Seen(sum(self.stored(task).value for task in tasks), "the result backend")

    @staticmethod
    def now(task: AsyncResult | str) -> dict[str, Any]:
        """All that the backend currently stores about it."""
        return dict(app.backend.get_task_meta(id_of(task), cache=False))
