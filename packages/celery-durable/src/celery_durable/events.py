"""Receivers of signals. One set serves every app: each gets the app from the task or the sender."""

from typing import Any

from celery import Task, signals, states

from celery_durable.dead_letters import UNREADABLE, Letter, headers_of
from celery_durable.outbox import PUBLICATION
from celery_durable.signals import message_dead_lettered

ENDED = (states.SUCCESS, states.FAILURE, states.IGNORED)


def connect_events() -> None:
    """Connect the receivers; a second call changes nothing."""
    signals.task_postrun.connect(end_entry)
    message_dead_lettered.connect(end_entry_of_dead_letter)


def end_entry(task: Task, task_id: str, state: str | None, **_: Any) -> None:
    """End the outbox entry of a task that succeeded, failed for good, or was ignored.

    Not if the task could not publish a message: then it runs again.
    """
    request = task.request
    publication = request.get(PUBLICATION)
    if publication and state in ENDED and not request.get("outbox_stays") and not request.is_eager:
        task.app.durable.outbox.end(task_id, publication)


def end_entry_of_dead_letter(sender: Any, letter: Letter, **_: Any) -> None:
    """End the outbox entry of a dead letter, if its message could be read: otherwise its task id cannot be trusted."""
    publication = headers_of(letter.payload).get(PUBLICATION)
    if letter.reason not in UNREADABLE and isinstance(publication, int):
        sender.durable.outbox.end(letter.task_id, publication)
