"""The command `delayed`, for Config(transport="atomic"): messages that wait in Redis for their ETA.

python -m celery_durable -A APP delayed [list]
python -m celery_durable -A APP delayed run|cancel|give-up ID | --task NAME | --all

run: they are due now. cancel: they are revoked: their state becomes REVOKED, and a chord of theirs fails.
give-up: workers with the stock transport get them, with their ETA, and hold them: for a return to that transport, once
no worker with the atomic one runs. With --all they also get at once what killed ones of these held; else they would get
it after their visibility timeout.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kombu.utils.json import dumps
from redis import RedisError

from celery_durable.atomic.leases import TAG_PREFIX
from celery_durable.atomic.scripts import MOVE
from celery_durable.logs import escaped

LISTED = 50
PAGE = 500  # messages in one round trip


@dataclass(frozen=True)
class Delayed:
    """A delayed message."""

    queue: str
    due: float  # epoch s
    member: bytes  # list, "\0", a unique id, "\0", message

    @property
    def list_name(self) -> bytes:
        """The list in which it will wait."""
        return self.member.partition(b"\0")[0]

    @property
    def message(self) -> bytes:
        """As it was published."""
        return self.member.split(b"\0", 2)[-1]

    def header(self, name: str) -> str:
        """A header of its task; empty if the message cannot be read."""
        try:
            return str(json.loads(self.message)["headers"][name])
        except (ValueError, TypeError, KeyError, AttributeError):
            return ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("action", choices=["list", "run", "cancel", "give-up"], nargs="?", default="list")
    parser.add_argument("id", nargs="?", help="id of a task")
    parser.add_argument("--task", help="all of this task")
    parser.add_argument("--all", action="store_true")


def run(app: Any, options: argparse.Namespace) -> int:
    """Run the command. Returns the exit code: 0, 1 if there is no such message, 2 for a mistake in the options."""
    try:
        with app.durable.raw_broker() as client:
            command = Command(app, client)
            return command.list() if options.action == "list" else command.each(options)
    except RedisError as error:
        print(f"delayed: Redis does not answer ({error}); is it up?", file=sys.stderr)
        return 1


class Command:
    """The command for the delayed messages of one app."""

    def __init__(self, app: Any, client: Any) -> None:
        self._app, self._client = app, client

    def list(self) -> int:
        """Print the number of delayed messages of each queue, and the next ones."""
        for queue in self._queues():
            if number := self._client.zcard(self._key(queue)):
                print(f"{number:6}  {escaped(queue)}")
        nearest = sorted(self._read(LISTED), key=lambda each: each.due)[:LISTED]
        print("" if nearest else "no delayed messages")
        for each in nearest:
            due = datetime.fromtimestamp(each.due, UTC)
            name = f"{each.header('task')}[{each.header('id')}]"
            print(f"{due:%Y-%m-%d %H:%M:%S} UTC  {escaped(each.queue):<5} {escaped(name)}")
        return 0

    def each(self, options: argparse.Namespace) -> int:
        """Do something with the messages that the options select."""
        if [bool(options.id), options.task is not None, options.all].count(True) != 1:
            print(f"delayed: {options.action}: give one of: an ID, --task, --all", file=sys.stderr)
            return 2
        act: Callable[[Delayed], str] = {"run": self._run, "cancel": self._cancel, "give-up": self._give_up}[
            options.action
        ]
        found = [each for each in self._read() if _is_chosen(each, options)]
        for each in found:
            print(f"{act(each)} {escaped(each.header('task'))}[{escaped(each.header('id'))}]")
        returned = self._return_lapsed() if options.action == "give-up" and options.all else 0
        if returned:
            print(f"returned to their queues: {returned} messages that killed workers held")
        if not found and not returned:
            print("delayed: no such message; see list", file=sys.stderr)
        return 0 if found or returned else 1

    def _run(self, each: Delayed) -> str:
        return "due now" if self._move(each, _without_eta(each.message)) else "already due:"

    def _cancel(self, each: Delayed) -> str:
        self._app.control.revoke(each.header("id"))  # a worker that takes it discards it
        self._move(each, _without_eta(each.message))
        return "cancelled"

    def _give_up(self, each: Delayed) -> str:
        return "given up" if self._move(each, each.message) else "already due:"

    def _move(self, each: Delayed, message: bytes) -> bool:
        return bool(MOVE(self._client, [self._key(each.queue), each.list_name], [each.member, message]))

    def _return_lapsed(self) -> int:
        seconds, _ = self._client.time()
        with self._app.connection_for_write() as connection, connection._reraise_as_library_errors():
            channel = connection.default_channel
            index = channel.prefixed(channel.unacked_index_key)
            lapsed = self._client.zrange(
                index, seconds - self._app.durable.config.lease, "-inf", desc=True, byscore=True
            )
            tags = [tag.decode() for tag in lapsed if tag.startswith(TAG_PREFIX.encode())]
            for tag in tags:  # of each worker the newest first, so that the oldest is the next
                channel.qos.restore_by_tag(tag)
        return len(tags)

    def _queues(self) -> Iterator[str]:
        yield from sorted(self._app.amqp.queues)

    def _key(self, queue: str) -> str:
        return str(self._app.durable.delayed_key(queue))

    def _read(self, most: int | None = None) -> Iterator[Delayed]:
        """The next messages of each queue."""
        for queue in self._queues():
            first = 0
            while most is None or first < most:
                page = self._client.zrange(self._key(queue), first, first + PAGE - 1, withscores=True)
                yield from (Delayed(queue, due, member) for member, due in page)
                first += PAGE
                if len(page) < PAGE:
                    break


def _is_chosen(each: Delayed, options: argparse.Namespace) -> bool:
    wanted, header = (options.id, "id") if options.id else (options.task, "task")
    return bool(options.all) or each.header(header) == wanted


def _without_eta(message: bytes) -> bytes:
    """Otherwise its worker would delay it again."""
    payload = json.loads(message)
    payload["headers"]["eta"] = None
    return str(dumps(payload)).encode()
