"""What the library hears of signals. One set of receivers serves every app; each asks the task's or the message's."""

from typing import Any

from celery import Task, signals, states

from celery_durable.dead_letters import UNREADABLE, Letter, headers_of
from celery_durable.outbox import PUBLICATION
from celery_durable.signals import message_dead_lettered

ENDED = (states.SUCCESS, states.FAILURE, states.IGNORED)


def connect_events() -> None:
    """Connect the receivers; a second time changes nothing."""
    signals.task_postrun.connect(end_entry)
    message_dead_lettered.connect(end_entry_of_dead_letter)


def end_entry(task: Task, task_id: str, state: str | None, **_: Any) -> None:
    """A task succeeded, failed for good, or has nothing more to do: so has its outbox entry.

    Not where something that it had to publish could not be; it runs again then.
    """
    request = task.request
    publication = request.get(PUBLICATION)
    if publication and state in ENDED and not request.get("outbox_stays") and not request.is_eager:
        task.app.durable.outbox.end(task_id, publication)


def end_entry_of_dead_letter(sender: Any, letter: Letter, **_: Any) -> None:
    """Of a message that can be read: whatever cannot may claim to be anybody's."""
    publication = headers_of(letter.payload).get(PUBLICATION)
    if letter.reason not in UNREADABLE and isinstance(publication, int):
        sender.durable.outbox.end(letter.task_id, publication)
