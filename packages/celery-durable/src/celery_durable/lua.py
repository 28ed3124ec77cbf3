"""Lua scripts, called by their hash: Redis gets the text once."""

from collections.abc import Sequence
from functools import cached_property
from hashlib import sha1
from typing import Any

from redis import Redis
from redis.exceptions import NoScriptError


class Script:
    """A script. redis-py's takes a fifteenth of a publish to the outbox. In a pipeline use `register_script(text)`."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def sha(self) -> str:
        """Its name in Redis."""
        return sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    def __call__(self, client: Redis, keys: Sequence[str | bytes], arguments: Sequence[Any]) -> Any:
        """Raises RedisError."""
        try:
            return client.evalsha(self.sha, len(keys), *keys, *arguments)
        except NoScriptError:
            client.script_load(self.text)
            return client.evalsha(self.sha, len(keys), *keys, *arguments)
