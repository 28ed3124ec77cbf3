"""The Lua scripts: a file each, which begins with its contract."""

from functools import cached_property
from hashlib import sha1
from importlib.resources import files
from typing import Any

from redis import Redis
from redis.exceptions import NoScriptError


class Script:
    """Called by its hash: EVAL is not needed, and Redis gets the text once."""

    def __init__(self, name: str) -> None:
        self._name = name

    @cached_property
    def text(self) -> str:
        """What Redis gets."""
        return (files(__name__) / f"{self._name}.lua").read_text()

    @cached_property
    def sha(self) -> str:
        """Its name in Redis."""
        return sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    def __call__(self, client: Redis, keys: list[str], arguments: list[Any]) -> Any:
        """Raises RedisError."""
        try:
            return client.evalsha(self.sha, len(keys), *keys, *arguments)
        except NoScriptError:
            client.script_load(self.text)
            return client.evalsha(self.sha, len(keys), *keys, *arguments)


FETCH = Script("fetch")
GIVE_BACK = Script("give_back")
LAPSED = Script("lapsed")
RENEW = Script("renew")
DELAY = Script("delay")
DUE = Script("due")
