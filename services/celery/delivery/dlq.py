"""`make dlq`: looks at dead letters, puts them back on their queues, or drops them.

python -m delivery.dlq [list]
python -m delivery.dlq show ID
python -m delivery.dlq requeue|drop ID | --task NAME | --reason WORDS | --all
"""

import argparse
import base64
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from redis import Redis, RedisError

from celery_app import app
from delivery import outbox
from delivery.dead_letters import KEY, Reason
from settings import HIGH, LOW, PRIORITIES, priority_lists, settings

PAGE = 500  # entries a round trip
LISTED = 50
SHOWN = 2000  # characters of a payload
# What tells of the message's past, and is wrong of its new life.
FORGOTTEN = ("redelivered", "redelivered_at", "unknown_since", "eta", "expires")


class NotAMessageError(Exception):
    """A dead letter that cannot go back to a queue; the message says why."""


@dataclass(frozen=True)
class DeadLetter:
    """An entry of the stream."""

    id: str
    reason: str
    error: str
    queue: str
    task: str
    task_id: str
    payload: bytes

    @property
    def time(self) -> datetime:
        """When it died."""
        return datetime.fromtimestamp(int(self.id.partition("-")[0]) / 1000, UTC)

    def message(self) -> dict[str, Any]:
        """It as a message of a new life: retries, times and counts are reset. Raises NotAMessageError."""
        if self.reason == Reason.MALFORMED:
            raise NotAMessageError(f"it is malformed ({self.error})")
        if len(self.payload) > settings.max_message_bytes:
            raise NotAMessageError(
                f"it has {len(self.payload)} bytes; MAX_MESSAGE_BYTES is {settings.max_message_bytes}"
            )
        if self.queue not in (HIGH, LOW):
            raise NotAMessageError(f"nobody consumes queue {self.queue!r}")
        message: dict[str, Any] = json.loads(self.payload)
        headers = {name: value for name, value in message["headers"].items() if name not in FORGOTTEN}
        message["headers"] = {**headers, "retries": 0, "published_at": time.time()}
        message["properties"]["delivery_tag"] = str(uuid4())
        return message


def client() -> Any:
    """The broker, byte for byte. Raises SystemExit where it does not answer."""
    redis = Redis.from_url(settings.with_login(settings.redis_broker_url))
    try:
        redis.ping()
    except RedisError as error:
        raise SystemExit(f"dlq: the broker does not answer ({error}); `make up` starts it") from error
    return redis


def dead_letters(redis: Any, first: str = "-", last: str = "+") -> Iterator[DeadLetter]:
    """All of them, oldest first."""
    while page := redis.xrange(KEY, first, last, count=PAGE):
        for entry_id, fields in page:
            reason, error, queue, task, task_id = (
                fields.get(name, b"").decode(errors="replace")
                for name in (b"reason", b"error", b"queue", b"task", b"id")
            )
            yield DeadLetter(entry_id.decode(), reason, error, queue, task, task_id, fields[b"payload"])
        first = f"({page[-1][0].decode()}"


def requeue(redis: Any, letter: DeadLetter) -> None:
    """Put it back at the end of its queue and take it out of the stream, in one step. Raises NotAMessageError."""
    message = letter.message()
    priority = message["properties"].get("priority")
    priority = max(0, min(priority, PRIORITIES - 1)) if isinstance(priority, int) else 0
    if getattr(app.tasks.get(letter.task), "outbox", False):
        outbox.Unit(
            name=letter.task,
            queue=letter.queue,
            headers=message["headers"],
            properties={},
            body=json.loads(base64.b64decode(message["body"])),
            options={"priority": priority},
            published=message["headers"]["published_at"],
        ).write()
    with redis.pipeline(transaction=True) as pipe:
        pipe.lpush(priority_lists(letter.queue)[priority], json.dumps(message))
        pipe.xdel(KEY, letter.id)
        pipe.execute()


# --- The command ---


def show_all(redis: Any) -> None:
    """How many by reason and task, and the newest of them."""
    letters = list(dead_letters(redis))
    if not letters:
        print("no dead letters")
        return
    for (reason, task), count in Counter((letter.reason, letter.task) for letter in letters).most_common():
        print(f"{count:6}  {reason}  {task or '(no task)'}")
    print()
    for letter in letters[-LISTED:]:
        print(f"{letter.id:<18} {letter.time:%Y-%m-%d %H:%M:%S}  {letter.queue:<5} {letter.task}[{letter.task_id}]")
        print(f"{'':18} {letter.reason}: {letter.error}"[:200])
    if len(letters) > LISTED:
        print(f"… and {len(letters) - LISTED} older ones")


def show(letter: DeadLetter) -> None:
    """One of them, whole."""
    for name in ("id", "time", "reason", "error", "queue", "task", "task_id"):
        print(f"{name:<8} {getattr(letter, name)}")
    text = letter.payload.decode(errors="backslashreplace")
    print(f"{'payload':<8} {text[:SHOWN]}{'…' if len(text) > SHOWN else ''}")


def chosen(redis: Any, options: argparse.Namespace) -> list[DeadLetter]:
    """Those that the options name. Raises SystemExit when there is none."""
    if options.id:
        found = list(dead_letters(redis, options.id, options.id))
    else:
        found = [
            letter
            for letter in dead_letters(redis)
            if options.all
            or (options.task is not None and letter.task == options.task)
            or (options.reason is not None and letter.reason == options.reason)
        ]
    if not found:
        raise SystemExit("dlq: no such dead letter; `make dlq` lists them")
    return found


def main(arguments: list[str]) -> int:
    """Do what the arguments say. Returns the exit code: 1 when something could not go back."""
    parser = argparse.ArgumentParser(prog="dlq", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("action", choices=["list", "show", "requeue", "drop"], nargs="?", default="list")
    parser.add_argument("id", nargs="?")
    parser.add_argument("--task", help="all of this task")
    parser.add_argument("--reason", help=f"all with this reason: {', '.join(Reason)}")
    parser.add_argument("--all", action="store_true")
    options = parser.parse_args(arguments)
    redis = client()
    if options.action == "list":
        show_all(redis)
        return 0
    if options.reason is not None and options.reason not in set(Reason):
        parser.error(f"--reason: choose of {', '.join(map(repr, map(str, Reason)))}")
    if [bool(options.id), options.task is not None, options.reason is not None, options.all].count(True) != 1:
        parser.error(f"{options.action}: which? an ID, --task, --reason or --all")
    app.loader.import_default_modules()
    left = 0
    for letter in chosen(redis, options):
        if options.action == "show":
            show(letter)
        elif options.action == "drop":
            redis.xdel(KEY, letter.id)
            print(f"dropped {letter.id} {letter.task}[{letter.task_id}]")
        else:
            try:
                requeue(redis, letter)
                print(f"put back {letter.id} {letter.task}[{letter.task_id}] on {letter.queue}")
            except NotAMessageError as error:
                left += 1
                print(f"left {letter.id}: {error}; see it with show, take it away with drop", file=sys.stderr)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
