"""The command `dlq`: list, show, requeue or drop dead letters.

python -m celery_durable -A APP dlq [list]
python -m celery_durable -A APP dlq show ID
python -m celery_durable -A APP dlq requeue|drop ID | --task NAME | --reason WORDS | --all
"""

import argparse
import re
import sys
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any

from redis import RedisError

from celery_durable.dead_letters import Letter, Reason
from celery_durable.errors import NotRequeueableError
from celery_durable.logs import escaped
from celery_durable.requeue import DeadLetterActions

ID = re.compile(r"\d{1,19}-\d{1,19}")  # of a stream entry
LISTED = 50
SHOWN = 2000  # characters of a payload


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("action", choices=["list", "show", "requeue", "drop"], nargs="?", default="list")
    parser.add_argument("id", nargs="?", help="id of a dead letter, as shown by list")
    parser.add_argument("--task", help="all of this task")
    parser.add_argument("--reason", help=f"all with this reason: {', '.join(Reason)}")
    parser.add_argument("--all", action="store_true")


def run(app: Any, options: argparse.Namespace) -> int:
    """Run the command. Returns the exit code: 0, 1 if a dead letter was left, 2 for a mistake in the options."""
    try:
        with app.durable.raw_broker() as client:
            command = Command(app, client)
            if options.action == "list":
                return command.list()
            return command.each(options)
    except RedisError as error:
        print(f"dlq: Redis does not answer ({error}); is it up?", file=sys.stderr)
        return 1


class Command:
    """The command for the dead letters of one app."""

    def __init__(self, app: Any, client: Any) -> None:
        self._stream, self._client = app.durable.dead_letters, client
        self._actions = DeadLetterActions(app.durable)

    def list(self) -> int:
        """Print the number of dead letters by reason and task, and the newest ones."""
        counts: Counter[tuple[str, str]] = Counter()
        newest: deque[Letter] = deque(maxlen=LISTED)
        for letter in self._stream.read(self._client):
            counts[letter.reason, letter.task] += 1
            newest.append(letter)
        _, size, overflowed = self._stream.count(self._client)
        if not counts:
            print("no dead letters")
        for (reason, task), count in counts.most_common():
            print(f"{count:6}  {escaped(reason)}  {escaped(task) or '(no task)'}")
        if counts:
            print()
        for letter in newest:
            print(f"{letter.id:<18} {letter.time:%Y-%m-%d %H:%M:%S}  {escaped(letter.queue):<5} {_name(letter)}")
            print(f"{'':18} {escaped(letter.reason)}: {escaped(letter.error)}"[:200])
            if chord := self._actions.chord(letter):
                print(f"{'':18} in a chord: {escaped(chord)}")
        if (more := counts.total() - len(newest)) > 0:
            print(f"… and {more} older ones")
        if overflowed:
            print(f"{overflowed} older ones were removed: a limit was exceeded ({size} bytes now)")
        return 0

    def each(self, options: argparse.Namespace) -> int:
        """Show, requeue or drop the dead letters that the options select."""
        if options.reason is not None and options.reason not in set(Reason):
            print(f"dlq: --reason: choose from {', '.join(map(repr, map(str, Reason)))}", file=sys.stderr)
            return 2
        if [bool(options.id), options.task is not None, options.reason is not None, options.all].count(True) != 1:
            print(f"dlq: {options.action}: give one of: an ID, --task, --reason, --all", file=sys.stderr)
            return 2
        found = left = 0
        for letter in self._chosen(options):
            found += 1
            try:
                print(self._do(options.action, letter))
            except NotRequeueableError as error:
                left += 1
                print(f"left {letter.id}: {escaped(error)}; show prints it, drop removes it", file=sys.stderr)
        if not found:
            print("dlq: no such dead letter; see list", file=sys.stderr)
        return 0 if found and not left else 1

    def _chosen(self, options: argparse.Namespace) -> Iterator[Letter]:
        if options.id:
            if ID.fullmatch(options.id):
                yield from self._stream.read(self._client, options.id, options.id)
            return
        seconds, microseconds = self._client.time()
        now = str(seconds * 1000 + microseconds // 1000)  # skip what is dead-lettered again meanwhile
        for letter in self._stream.read(self._client, last=now):
            if options.all or (
                options.task == letter.task if options.task is not None else options.reason == letter.reason
            ):
                yield letter

    def _do(self, action: str, letter: Letter) -> str:
        if action == "show":
            return self._whole(letter)
        name = f"{letter.id} {_name(letter)}"
        act = self._actions.drop if action == "drop" else self._actions.requeue
        if not act(self._client, letter):
            return f"no longer there: {name}"
        return f"dropped {name}" if action == "drop" else f"requeued {name} to {escaped(letter.queue)}"

    def _whole(self, letter: Letter) -> str:
        text = letter.payload.decode(errors="backslashreplace")
        values = {
            "id": letter.id,
            "time": letter.time,
            "reason": letter.reason,
            "error": letter.error,
            "queue": letter.queue,
            "task": letter.task,
            "task_id": letter.task_id,
            "chord": self._actions.chord(letter) or "none",
            "size": f"{letter.size} bytes" + ("" if letter.whole else f", {len(letter.payload)} of them kept"),
            "payload": f"{text[:SHOWN]}{'…' if len(text) > SHOWN else ''}",
        }
        return "\n".join(f"{name:<8} {escaped(value)}" for name, value in values.items())


def _name(letter: Letter) -> str:
    return escaped(f"{letter.task}[{letter.task_id}]")
