"""An effect applied together with its done marker in one atomic step: a second run changes nothing.

Tasks run at least once: after a worker is killed between effect and acknowledgement the task runs again on another
worker, and two runs can overlap. `once` applies the effect only once. Marker and effect must be in the same Redis.
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from redis import Redis, ResponseError
from redis.client import Pipeline
from redis.exceptions import ExecAbortError, OutOfMemoryError

from celery_durable.errors import EffectFailedError

T = TypeVar("T")

FAILED = "celery-durable: effect failed"  # key in the marker of a failed effect


class Once(NamedTuple):
    """The result of the first run, decoded from JSON, and whether this run was the first."""

    result: Any
    first: bool


def atomically(client: Redis, step: Callable[[Pipeline], T], *watched: str) -> T:
    """Run `step(pipe)` as one transaction: reads, then `pipe.multi()`, then writes. Returns what it returns.

    It is repeated when a watched key changes meanwhile, or when the connection breaks and the writes may or may not
    have been applied: a step must check that by reading the watched keys.
    """
    result: T = client.transaction(step, *watched, value_from_callable=True)
    return result


def once(
    client: Redis, marker: str, effect: Callable[[Pipeline], Any], ttl: float | None = None, *, marked: bool = True
) -> Once:
    """Apply an effect unless its marker key exists. `effect(pipe)` queues write commands and returns its JSON result.

    The marker holds the result, for `ttl` seconds (None: until it is deleted); keep it longer than a message can be
    redelivered. `marked=False` applies the effect at each run.

    If the effect raises, or its result is not JSON (TypeError), nothing is written. Raises ValueError for a ttl of 0 or
    less, and EffectFailedError, at this and each later run, when Redis refused a command of the effect (for example
    because of a key's type) and applied the others: it does not roll back.
    """
    if ttl is not None and ttl <= 0:
        raise ValueError(f"ttl: {ttl!r}; it must be above 0, or None to keep the marker until it is deleted")
    px = None if ttl is None else max(1, int(ttl * 1000))
    queued = False

    def step(pipe: Pipeline) -> Once:
        nonlocal queued
        queued = False
        done = pipe.get(marker) if marked else None
        if done is not None:
            return Once(_result(marker, done), first=False)
        pipe.multi()
        result = json.dumps(effect(pipe))
        pipe.set(marker, result, px=px)
        queued = True
        return Once(json.loads(result), first=True)

    try:
        return atomically(client, step, marker)
    except (ExecAbortError, OutOfMemoryError):  # the whole transaction was refused
        raise
    except ResponseError as error:
        if queued and client.exists(marker):  # the transaction was executed
            client.set(marker, json.dumps({FAILED: str(error)}), px=px)
            raise EffectFailedError(_explained(marker, str(error))) from error
        raise


def _result(marker: str, done: Any) -> Any:
    try:
        result = json.loads(done)
    except ValueError as error:
        raise ValueError(f"marker {marker}: the key does not hold a result, {done!r:.80}") from error
    if isinstance(result, dict) and FAILED in result:
        raise EffectFailedError(_explained(marker, result[FAILED]))
    return result


def _explained(marker: str, error: str) -> str:
    return (
        f"marker {marker}: Redis refused a command of the effect ({error}) and applied the others; "
        "repair the data, then delete the marker"
    )
