"""Malformed messages, one of each kind, which must not crash a worker."""

import base64
import json
from random import Random
from typing import Any

ID = "malformed-"  # what the tasks' ids begin with
# Kinds that a worker can read, and whose tasks run or fail; the others become dead letters.
READABLE = {
    "priority a word",
    "routing key half a character",
    "embed null",
    "ETA in the year 1",
    "unknown content encoding",
    "no delivery tag",
    "delivery tag null",
    "delivery tag an object",
}

_random = Random()


def message(
    body: object = ((1, 1), {}, {}), headers: Any = None, raw_body: str | None = None, **more: Any
) -> dict[str, Any]:
    """A valid message of task `add` for queue `celery`, with changes."""
    task_id = f"{ID}{_random.getrandbits(64):x}"
    return {
        "body": base64.b64encode(json.dumps(body).encode()).decode() if raw_body is None else raw_body,
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"lang": "py", "task": "add", "id": task_id, "root_id": task_id, **(headers or {})},
        "properties": {
            "correlation_id": task_id,
            "delivery_tag": f"{ID}{_random.getrandbits(64):x}",
            "delivery_info": {"exchange": "", "routing_key": "celery"},
            "priority": 0,
            "body_encoding": "base64",
        },
        **more,
    }


def without(key: str, *path: str) -> dict[str, Any]:
    """A valid message without one part."""
    whole = part = message()
    for name in path:
        part = part[name]
    del part[key]
    return whole


def with_(value: object, key: str, *path: str) -> dict[str, Any]:
    """A valid message with one part changed."""
    whole = part = message()
    for name in path:
        part = part[name]
    part[key] = value
    return whole


def signature(**parts: object) -> dict[str, Any]:
    """A signature of task `add`, with changes."""
    return {"task": "add", "args": [], "kwargs": {}, "options": {}, "subtask_type": None, "immutable": False, **parts}


def old_protocol(**parts: object) -> dict[str, Any]:
    """A message of Celery's protocol 1, with changes."""
    made = message()
    body = {"task": "add", "id": made["headers"]["id"], "args": [1, 1], "kwargs": {}, **parts}
    return {**made, "headers": {}, "body": base64.b64encode(json.dumps(body).encode()).decode()}


def kinds(limit: int) -> dict[str, bytes]:
    """Each kind by its name, the same at each call; `limit` is the largest message that is allowed (bytes)."""
    _random.seed(7)
    not_even_json = {
        "empty": b"",
        "not JSON": b"}{",
        "not UTF-8": b"\xff\xfe\x00",
        "half a message": json.dumps(message()).encode()[:-40],
        "nested too deeply": b"[" * 100_000,
        "too large": json.dumps(message([["x" * limit, 1], {}, {}])).encode(),
    }
    odd: dict[str, object] = {
        "null": None,
        "a number": 7,
        "a string": "hello",
        "a list": [1, 2],
        "an empty object": {},
        "no properties": without("properties"),
        "properties null": with_(None, "properties"),
        "no delivery tag": without("delivery_tag", "properties"),
        "delivery tag null": with_(None, "delivery_tag", "properties"),
        "delivery tag an object": with_({}, "delivery_tag", "properties"),
        "no delivery info": without("delivery_info", "properties"),
        "delivery info null": with_(None, "delivery_info", "properties"),
        "routing key null": with_(None, "routing_key", "properties", "delivery_info"),
        "routing key half a character": with_("\udc80", "routing_key", "properties", "delivery_info"),
        "priority a word": with_("urgent", "priority", "properties"),
        "unknown body encoding": with_("rot13", "body_encoding", "properties"),
        "no body": without("body"),
        "body null": with_(None, "body"),
        "body not base64": message(raw_body="!"),
        "body not JSON": message(raw_body=base64.b64encode(b"}{").decode()),
        "body not UTF-8": message(raw_body=base64.b64encode(b"\xff\xfe").decode()),
        "body an object": message({}),
        "body an empty list": message([]),
        "body of four parts": message([[1, 1], {}, {}, {}]),
        "arguments a number": message([7, {}, {}]),
        "keyword arguments a list": message([[1, 1], ["x"], {}]),
        "embed null": message([[1, 1], {}, None]),
        "callbacks numbers": message([[1, 1], {}, {"callbacks": [7]}]),
        "callbacks an object": message([[1, 1], {}, {"callbacks": {"task": "add"}}]),
        "callback without arguments": message([[1, 1], {}, {"callbacks": [{"task": "add"}]}]),
        "callback without a task": message([[1, 1], {}, {"callbacks": [signature(task=None)]}]),
        "callback of an unknown kind": message([[1, 1], {}, {"callbacks": [signature(subtask_type="ring")]}]),
        "callback of an odd kind": message([[1, 1], {}, {"callbacks": [signature(subtask_type=[])]}]),
        "callback a group of numbers": message(
            [[1, 1], {}, {"callbacks": [signature(subtask_type="group", kwargs={"tasks": [7]})]}]
        ),
        "callback a chain of none": message([[1, 1], {}, {"callbacks": [signature(subtask_type="chain")]}]),
        "errbacks a number": message([[1, 1], {}, {"errbacks": 7}]),
        "errbacks lists": message([[1, 1], {}, {"errbacks": [[]]}]),
        "chain a word": message([[1, 1], {}, {"chain": "add"}]),
        "chain of numbers": message([[1, 1], {}, {"chain": [7]}]),
        "chord a word": message([[1, 1], {}, {"chord": "x"}]),
        "chord a list": message([[1, 1], {}, {"chord": []}]),
        "embed a list": message([[1, 1], {}, []]),
        "embed of a request": message([[1, 1], {}, {"delivery_info": 7}]),
        "callbacks in the headers": message(headers={"callbacks": [7]}),
        "the old protocol, arguments a number": old_protocol(args=7),
        "the old protocol, id an object": old_protocol(id={}),
        "the old protocol, callbacks numbers": old_protocol(callbacks=[7]),
        "no headers": without("headers"),
        "headers null": with_(None, "headers"),
        "headers a list": with_([], "headers"),
        "no task": without("task", "headers"),
        "task null": with_(None, "task", "headers"),
        "task a list": with_(["x"], "task", "headers"),
        "id half a character, retries a word": message(headers={"id": f"{ID}\udc80", "retries": "many"}),
        "no id": without("id", "headers"),
        "id null": with_(None, "id", "headers"),
        "id an object": with_({}, "id", "headers"),
        "id half a character": with_(f"{ID}\udc80", "id", "headers"),
        "ETA a word": with_("soon", "eta", "headers"),
        "ETA a number": with_(7, "eta", "headers"),
        "ETA in the year 1": with_("0001-01-01T00:00:00", "eta", "headers"),
        "expiry a word": with_("never", "expires", "headers"),
        "retries a word": with_("many", "retries", "headers"),
        "retries infinite": with_(float("inf"), "retries", "headers"),
        "time limit a word": with_("long", "timelimit", "headers"),
        "time limits words": with_(["a", "b"], "timelimit", "headers"),
        "id empty": with_("", "id", "headers"),
        "id a number": with_(0, "id", "headers"),
        "shadow a number": with_(7, "shadow", "headers"),
        "a function of Celery": with_(7, "update", "headers"),
        "headers of headers a word": with_("x", "headers", "headers"),
        "root id an object": with_({}, "root_id", "headers"),
        "stamped headers a number": with_(7, "stamped_headers", "headers"),
        "stamped headers objects": with_([{}], "stamped_headers", "headers"),
        "stamps a number": message(headers={"stamped_headers": ["run"], "stamps": 7}),
        "stamps a list": message(headers={"stamped_headers": ["run"], "stamps": [7]}),
        "due time a word": message(headers={"beat_entry": "tick", "beat_due": "now"}),
        "exchange an object": with_({}, "exchange", "properties", "delivery_info"),
        "publish stamp a word": with_("yesterday", "published_at", "headers"),
        "unknown compression": with_("rar", "compression", "headers"),
        "a pickle": with_("application/x-python-serialize", "content-type"),
        "unknown content type": with_("application/x-unknown", "content-type"),
        "unknown content encoding": with_("klingon", "content-encoding"),
        "content type null": with_(None, "content-type"),
    }
    return {**not_even_json, **{name: json.dumps(value).encode() for name, value in odd.items()}}
