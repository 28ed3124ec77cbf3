"""An effect applied together with its done marker in one atomic step: a second run changes nothing.

Tasks run at least once: a worker killed after its effect and before its acknowledgement runs again elsewhere, and two
runs can overlap. With `once` neither shows. All keys must be on one Redis.
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from redis import Redis
from redis.client import Pipeline

T = TypeVar("T")


class Once(NamedTuple):
    """What the first run returned, and whether this run was the first."""

    result: Any
    first: bool


def atomically(client: Redis, step: Callable[[Pipeline], T], *watched: str) -> T:
    """Run `step(pipe)` as one transaction: reads, then `pipe.multi()`, then writes. Returns what it returns.

    It starts over when a watched key changes meanwhile, or when the connection breaks and so nobody knows whether
    the writes were made: a step must read from the watched keys whether they were.
    """
    result: T = client.transaction(step, *watched, value_from_callable=True)
    return result


def once(client: Redis, marker: str, effect: Callable[[Pipeline], Any], ttl: int | None = None) -> Once:
    """Apply an effect unless its marker key exists. `effect(pipe)` queues write commands and returns its JSON result.

    The marker holds the result, for `ttl` seconds (None: until it is deleted). Redis does not roll back: a command
    that fails inside EXEC (wrong type of key) leaves the others done, so effects use keys of one type alone.
    """

    def step(pipe: Pipeline) -> Once:
        done = pipe.get(marker)
        if done is not None:
            return Once(json.loads(done), first=False)
        pipe.multi()
        result = effect(pipe)
        pipe.set(marker, json.dumps(result), ex=ttl)
        return Once(result, first=True)

    return atomically(client, step, marker)
