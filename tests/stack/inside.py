"""Functions that tests run inside the stack's networks, where Redis is, in a `client` container.

`Inside.call(function, …)` on the host runs a function of this module in that container and returns what it returns;
arguments and results are JSON. One container for the whole run: a Python that imports Celery takes a second to start.
"""

import base64
import importlib
import itertools
import json
import os
import pickle
import re
import socket
import subprocess
import sys
import threading
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar
from uuid import uuid4

P = ParamSpec("P")
R = TypeVar("R")
Json = dict[str, Any]


class InsideError(OSError):
    """A function failed in the client container; the text is its traceback. OSError, since Redis is the usual cause."""


class EndedError(RuntimeError):
    """The client container has ended. It ends by itself only at the end of its input: somebody has ended it."""


class Inside:
    """The client container, seen from the host."""

    def __init__(self, command: list[str]) -> None:
        """`command` starts this module in a client container, with stdin and stdout attached."""
        # In a session of its own: Ctrl-C does not end it, since what undoes a test still needs it.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self._lock = threading.Lock()
        self._calls = itertools.count()

    def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a function of this module in the container. Raises InsideError, or EndedError."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            answer, number = Json(), next(self._calls)
            with suppress(BrokenPipeError):
                self._process.stdin.write(json.dumps([number, function.__name__, args, kwargs]) + "\n")
                self._process.stdin.flush()
            while answer.get("number") != number:  # the answer of an interrupted call comes first
                line = self._process.stdout.readline()
                if not line:
                    raise EndedError(f"the client container has ended with exit code {self._process.wait(10)}")
                answer = json.loads(line)
        if "error" in answer:
            raise InsideError(answer["error"])
        result: R = answer["result"]
        return result

    def close(self) -> None:
        """End the container: its program exits at the end of its input."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait(20)


def serve() -> None:
    """Answer one JSON line [number, function, args, kwargs] after another."""
    answers, sys.stdout = sys.stdout, sys.stderr  # anything else printed must not be taken for an answer
    app()
    for line in sys.stdin:
        number, name, args, kwargs = json.loads(line)
        try:
            answer = {"result": globals()[name](*args, **kwargs)}
        except Exception:
            answer = {"error": traceback.format_exc(limit=-3)}
        print(json.dumps({"number": number, **answer}), file=answers, flush=True)


# --- Below: runs in the container ---


def app() -> Any:
    """The Celery app with its tasks."""
    celery_app = importlib.import_module("celery_app").app
    celery_app.loader.import_default_modules()
    return celery_app


def durable() -> Any:
    """The app's library object, made by `install`."""
    return importlib.import_module("celery_app").durable


def publish(task: str, calls: list[list[Any]], **options: Any) -> list[str]:
    """Publish a task once for each list of arguments. Returns their ids."""
    return [app().tasks[task].apply_async(args, **options).id for args in calls]


class _MakesFolder:
    """Unpickling this makes a folder, as any code in a pickle would be run."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self._folder,)


def publish_pickle(folder: str) -> None:
    """Publish a pickled message to the front of `low`; unpickling it makes a folder."""
    with app().producer_pool.acquire(block=True) as producer:
        producer.publish(
            pickle.dumps([[_MakesFolder(folder)], {}, {}]),
            content_type="application/x-python-serialize",
            content_encoding="binary",
            headers={
                "task": "tasks.maintenance.report",
                "id": "pickled",
                "lang": "py",
                "argsrepr": "()",
                "kwargsrepr": "{}",
            },
            exchange="low",
            routing_key="low",
            priority=0,
        )


def last_dead_letter() -> str:
    """Stream id of the newest dead letter; "0" if there is none."""
    newest = durable().broker.xrevrange(durable().dead_letters.key, count=1)
    return str(newest[0][0]) if newest else "0"


def _dead_letters(after: str) -> Iterator[Any]:
    yield from durable().dead_letters.read(durable().raw_broker(), f"({after}")


def dead_letters(after: str = "0") -> list[Json]:
    """Dead letters without their payloads, newer than this stream id."""
    return [
        {"entry": each.id, "reason": each.reason, "queue": each.queue, "task": each.task, "id": each.task_id}
        for each in _dead_letters(after)
    ]


def drop_dead_letters(entries: list[str]) -> None:
    """Remove these from the stream."""
    if entries:
        broker("XDEL", durable().dead_letters.key, *entries)


def control(command: str, nodes: list[str]) -> None:
    """Send a remote control command to some workers."""
    getattr(app().control, command)(destination=nodes)


def timed_publish(task: str, args: Sequence[Any], **options: Any) -> tuple[str, float]:
    """The name of the exception that publishing raises, or "", and its duration (s)."""
    began, error = time.monotonic(), ""
    try:
        app().tasks[task].apply_async(args, **options)
    except Exception as raised:
        error = type(raised).__name__
    return error, time.monotonic() - began


def send_event(kind: str, **fields: Any) -> None:
    """Send an event as a worker would."""
    with app().connection_for_write() as connection:
        app().events.Dispatcher(connection).send(kind, **fields)


def send_by_name(task: str, headers: Json, args: Sequence[Any] = ()) -> str:
    """Publish a task, which need not exist, to `low`, with headers that the library lets no publisher set."""
    task_id = str(uuid4())
    message = app().amqp.as_task_v2(task_id, task, args)
    with app().amqp.producer_pool.acquire(block=True) as producer:
        producer.publish(
            message.body,
            exchange="",
            routing_key="low",
            serializer="json",
            headers={**message.headers, **headers},
            **message.properties,
        )
    return task_id


def take_out(task_id: str) -> bool:
    """Remove a task's message from the unacknowledged ones; returns whether it was there."""
    client = durable().broker
    for tag, message in client.hgetall("unacked").items():
        if task_id in message:
            client.zrem("unacked_index", tag)
            return bool(client.hdel("unacked", tag))
    return False


def refused(task: str, args: Sequence[Any] = (1, 1), **options: Any) -> str:
    """The name of the exception that publishing raises."""
    error, _ = timed_publish(task, args, **options)
    assert error, f"{task} with {options} was published"
    return error


def results(ids: list[str]) -> list[Json]:
    """State, result, end and worker of each task, without waiting."""
    found = []
    for task in ids:
        meta = app().backend.get_task_meta(task)
        ended, result = meta.get("date_done"), meta["result"]
        found.append(
            {
                "state": meta["status"],
                "result": result if meta["status"] == "SUCCESS" else repr(result),
                "ended": ended.isoformat() if hasattr(ended, "isoformat") else ended,
                "worker": meta.get("worker"),
            }
        )
    return found


def states(ids: list[str]) -> list[str]:
    """State of each task."""
    return [result["state"] for result in results(ids)]


def revoke(task: str, terminate: bool = False) -> None:
    """Revoke a task at all workers."""
    app().control.revoke(task, terminate=terminate)


def inspect(what: str) -> Json:
    """The workers' replies to `celery inspect …`, by node name."""
    # A new connection: one of the pool may be that of a killed Redis, and this is not retried.
    with app().connection_for_write() as connection:
        return dict(getattr(app().control.inspect(timeout=2, connection=connection), what)() or {})


def broker(*command: Any) -> Any:
    """A Redis command on the broker, as the user `celery`."""
    return durable().broker.execute_command(*command)


def results_redis(*command: Any) -> Any:
    """A Redis command on redis-results, as the user `celery`."""
    return durable().store.execute_command(*command)


def redis_says(host: str, user: str | None, password: str | None, *command: Any) -> str:
    """The first word of Redis' error to a command, or "OK"."""
    redis = importlib.import_module("redis")
    once = redis.retry.Retry(redis.backoff.NoBackoff(), 0)  # by default a refused login is retried for 4 s
    client = redis.Redis(host, username=user, password=password, socket_timeout=5, retry=once)
    try:
        client.execute_command(*command)
    except redis.RedisError as error:
        return f"{type(error).__name__}: {error}"
    return "OK"


def endless_script(host: str, user: str, password: str, script: str) -> str:
    """Start a script that does not end; returns Redis' error."""
    redis = importlib.import_module("redis")
    once = redis.retry.Retry(redis.backoff.NoBackoff(), 0)
    client = redis.Redis(host, username=user, password=password, socket_timeout=2, retry=once)
    digest = client.script_load(script)
    try:
        client.evalsha(digest, 1, "celery-durable:endless")
    except redis.RedisError as error:
        return f"{type(error).__name__}: {error}"
    return "OK"


def page(url: str, user: str, password: str) -> str:
    """What a server answers, also if that is an error of its own; one that needs no login ignores it."""
    request = urllib.request.Request(url)  # noqa: S310 - of this stack
    request.add_header("Authorization", "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode())
    try:
        reply = urllib.request.urlopen(request, timeout=10)  # noqa: S310
    except urllib.error.HTTPError as error:
        if error.code < 500:
            raise
        reply = error  # celery-exporter's, for a moment after a restart of the broker
    with reply:
        return str(reply.read().decode())


def keys(host: str, user: str, password: str) -> list[str]:
    """Names of all keys."""
    client = importlib.import_module("redis").Redis(host, username=user, password=password, decode_responses=True)
    return list(client.scan_iter(count=1000))


def broker_transaction(*commands: list[Any]) -> None:
    """Commands in MULTI and EXEC on the broker."""
    _transaction(durable().broker, commands)


def results_transaction(*commands: list[Any]) -> None:
    """Commands in MULTI and EXEC on redis-results."""
    _transaction(durable().store, commands)


def _transaction(client: Any, commands: tuple[list[Any], ...]) -> None:
    with client.pipeline(transaction=True) as pipe:
        for command in commands:
            pipe.execute_command(*command)
        pipe.execute()


def waiting(queue: str) -> dict[str, int]:
    """Messages in each priority list of a queue, counted by Redis."""
    client = durable().broker
    lists = durable().priority_lists(queue)
    return {str(step): client.llen(name) for step, name in enumerate(lists)}


def hostname() -> str:
    """Of this container: the start of its id."""
    return socket.gethostname()


def backlog() -> int:
    """The number of messages that wait or are unacknowledged."""
    client = durable().broker
    queues = importlib.import_module("queues").QUEUES
    return sum(sum(waiting(queue.name).values()) for queue in queues) + int(client.hlen("unacked"))


def taken(prefix: str) -> list[str]:
    """Task ids with this prefix of the unacknowledged messages."""
    messages = durable().broker.hgetall("unacked").values()
    found = (re.search(rf'"id": "({prefix}[^"]*)"', message) for message in messages)
    return [match[1] for match in found if match]


# >>> demo
# --- The demo ---


def publish_canvas(builder: str, *args: Any) -> str:
    """Apply a canvas that a function of tasks/workflows.py builds. Returns the id of its result."""
    workflows = importlib.import_module("tasks.workflows")
    return str(getattr(workflows, builder)(*args).apply_async().id)


def submit(task: str, ids: list[str], arguments: list[Any], options: Json) -> None:
    """Publish tasks of chaos/ledger.py, each with its id as first argument."""
    for task_id in ids:
        app().tasks[task].apply_async((task_id, *arguments), task_id=task_id, **options)


def submit_chords(ids: list[str], members: int, seconds: float) -> list[str]:
    """Publish chords with the highest priority; returns the ids of all their tasks."""
    ledger, chord = importlib.import_module("chaos.ledger"), importlib.import_module("celery").chord
    all_ids = []
    for task_id in ids:
        header = [f"{task_id}.{member}" for member in range(members)]
        chord(
            [ledger.apply.s(name, seconds).set(task_id=name, priority=0) for name in header],
            ledger.join.s(task_id).set(task_id=task_id, priority=0),
        ).apply_async()
        all_ids += [task_id, *header]
    return all_ids


def largest_message() -> int:
    """Bytes that a message may have."""
    return int(importlib.import_module("settings").settings.max_message_bytes)


def push(queue: str, payloads: list[str]) -> None:
    """Payloads, base64, to the front of a queue."""
    for payload in payloads:
        broker("RPUSH", queue, base64.b64decode(payload))


def dead_payloads(after: str) -> list[str]:
    """Payloads, base64, of the dead letters that are newer than this stream id."""
    return [base64.b64encode(each.payload).decode() for each in _dead_letters(after)]


def count_corpus() -> Json:
    """The count of the corpus by one process, without Redis and Celery."""
    output = subprocess.run([sys.executable, "-m", "search.count"], check=True, capture_output=True, text=True).stdout
    return dict(json.loads(output))


def forget_index() -> None:
    """Make every document look new, so that the next run counts them all again."""
    client = durable().store
    for digest in client.hvals("index:documents"):
        client.delete(f"index:document:{digest}")


def run_state(run: str) -> Json:
    """State of an indexing run, read from Redis, not from a worker."""
    return dict(importlib.import_module("search.index").run_status(durable().store, run))


# <<< demo
if __name__ == "__main__":
    serve()
