"""Checks that a message has the types that Celery assumes: a wrong one crashes it only later, in its pool or its timer.

Each check raises TypeError, which names the part. It quotes nothing of the arguments: they may be secret, and the text
is logged.
"""

from collections.abc import Mapping
from typing import Any

from celery.app.task import Context
from celery.canvas import Signature
from celery.utils.time import maybe_iso8601

NUMBER = (int, float, type(None))
TEXT = (str, type(None))
LIST = (list, tuple)

HEADERS: dict[str, tuple[type, ...]] = {
    "task": (str,),
    "id": (str,),
    "root_id": TEXT,
    "parent_id": TEXT,
    "group": TEXT,
    "shadow": TEXT,
    "argsrepr": TEXT,
    "kwargsrepr": TEXT,
    "eta": TEXT,
    "expires": TEXT,
    "retries": (int, type(None)),
    "ignore_result": (bool, type(None)),
    "replaced_task_nesting": (int, type(None)),
    "headers": (dict, type(None)),
    "stamped_headers": (list, type(None)),
    "stamps": (dict, type(None)),
    "published_at": NUMBER,
    "redelivered_at": NUMBER,
    "beat_entry": TEXT,
    "beat_due": NUMBER,
    "outbox_publication": (int, type(None)),
}
COMMAND: dict[str, tuple[type, ...]] = {  # remote control
    "method": (str,),
    "arguments": (dict, type(None)),
    "destination": (*LIST, type(None)),
    "pattern": TEXT,
    "matcher": TEXT,
    "ticket": TEXT,
    "reply_to": (dict, type(None)),
}
# Celery makes the headers attributes of a Context: these would replace its functions.
METHODS = {name for name in dir(Context) if callable(getattr(Context, name))}
EMBEDDED = {"callbacks", "errbacks", "chain", "chord"}  # in the third part of a body


def check_delivery(info: Mapping[str, Any]) -> None:
    """Check where a message was published to."""
    for name, kinds in (("routing_key", (str,)), ("exchange", TEXT)):
        if not isinstance(info.get(name), kinds):
            raise TypeError(f"{name}: {info.get(name)!r:.80}")


def check_headers(headers: Mapping[str, Any]) -> None:
    """Check the headers, or the body of Celery's old protocol, which holds the same."""
    for name, kinds in HEADERS.items():
        if not isinstance(headers.get(name), kinds):
            raise TypeError(f"header {name}: {headers.get(name)!r:.80}")
    if not headers["id"]:
        raise TypeError("header id: it is empty")
    for name in ("id", "root_id", "parent_id", "group"):  # become names of keys
        if not _is_utf8(headers.get(name) or ""):
            raise TypeError(f"header {name}: {headers[name]!r:.80} has half a character")
    for name in ("eta", "expires"):
        _check_time(f"header {name}", headers.get(name))
    for each in headers.get("stamped_headers") or ():
        _check("header stamped_headers", each, (str,))
    limits = headers.get("timelimit") or (None, None)
    if not (isinstance(limits, LIST) and len(limits) == 2 and all(isinstance(each, NUMBER) for each in limits)):
        raise TypeError(f"header timelimit: {limits!r:.80}")
    if replaced := METHODS & headers.keys():
        raise TypeError(f"header {min(replaced)}: Celery has a function of that name")
    _check_embedded(headers)


def check_body(body: Any) -> None:
    """Check the arguments, and the signatures of what follows the task."""
    if isinstance(body, dict):  # of the old protocol
        check_headers(body)
        body = [body.get("args", ()), body.get("kwargs", {}), {}]
    if not (isinstance(body, LIST) and len(body) == 3):
        raise TypeError(f"body: {type(body).__name__}, not a list of arguments, keyword arguments and embed")
    args, kwargs, embed = body
    _check("arguments", args, LIST)
    _check("keyword arguments", kwargs, (dict,))
    _check("embed", embed, (dict, type(None)))
    if unknown := (embed or {}).keys() - EMBEDDED:
        raise TypeError(f"embed: {len(unknown)} unknown parts, only {', '.join(sorted(EMBEDDED))} are known")
    _check_embedded(embed or {})


def check_command(body: Any) -> None:
    """Check a remote control command."""
    _check("body", body, (dict,))
    for name, kinds in COMMAND.items():
        _check(name, body.get(name), kinds)
    if reply_to := body.get("reply_to"):
        for name in ("exchange", "routing_key"):
            _check(f"reply_to: {name}", reply_to.get(name), (str,))


def _is_utf8(text: str) -> bool:
    """Whether Redis can store it: JSON can hold half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_time(what: str, value: Any) -> None:
    try:
        maybe_iso8601(value)
    except ValueError as error:
        raise TypeError(f"{what}: {value!r:.80}") from error


def _check_embedded(parts: Mapping[str, Any]) -> None:
    for name in ("callbacks", "errbacks", "chain"):
        _check(name, parts.get(name), (*LIST, type(None)))
        for each in parts.get(name) or ():
            if not (name == "errbacks" and isinstance(each, str)):  # Celery accepts the name of a task
                _check_signature(name, each)
    if parts.get("chord") is not None:
        _check_signature("chord", parts["chord"])


def _check_signature(where: str, signature: Any) -> None:
    _check(where, signature, (dict,))
    _check(f"{where}: task", signature.get("task"), (str,))
    _check(f"{where}: args", signature.get("args"), LIST)
    for name in ("kwargs", "options"):
        _check(f"{where}: {name}", signature.get(name), (dict,))
    kind, kwargs = signature.get("subtask_type"), signature["kwargs"]
    if kind is not None and not (isinstance(kind, str) and kind in Signature.TYPES):
        raise TypeError(f"{where}: unknown subtask_type")
    if kind in ("group", "chain"):
        _check(f"{where}: tasks", kwargs.get("tasks"), LIST)
        for each in kwargs["tasks"]:
            _check_signature(where, each)


def _check(what: str, value: object, kinds: tuple[type, ...]) -> None:
    if not isinstance(value, kinds):
        raise TypeError(f"{what}: {type(value).__name__}")
