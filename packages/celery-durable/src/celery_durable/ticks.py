"""Decides which message of a due time may run: two beats, or a restarted one, may send several.

<key_prefix>beat:<entry>     sorted set by due time (epoch s): "<due time> <task id>" of the message that runs
"""

import time
from collections.abc import Callable, Iterable
from typing import Any

from celery_durable.config import Config
from celery_durable.lua import Script

KEPT_FOR = 6 * 3600  # s; messages of one due time are sent within seconds

# KEYS: the entry's set. ARGV: due time, task id, oldest due time to keep, s to keep the set. Returns whether this task
# may run: it is the first, or a redelivery of the first.
CLAIM = Script("""
local holder = redis.call('ZRANGEBYSCORE', KEYS[1], ARGV[1], ARGV[1], 'LIMIT', 0, 1)[1]
if holder then
    return holder == ARGV[1] .. ' ' .. ARGV[2] and 1 or 0
end
redis.call('ZADD', KEYS[1], ARGV[1], ARGV[1] .. ' ' .. ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. ARGV[3])
redis.call('EXPIRE', KEYS[1], ARGV[4])
return 1
""")


class Ticks:
    """The due times of one app's periodic tasks."""

    def __init__(self, config: Config, store: Callable[[], Any]) -> None:
        self._config, self._store = config, store

    def key(self, entry: str) -> str:
        """Key of an entry's due times."""
        return f"{self._config.key_prefix}beat:{entry}"

    def claim(self, entry: str, due: float, task_id: str) -> bool:
        """Whether this task may run for that due time. Raises RedisError."""
        arguments = [f"{due:.3f}", task_id, f"{min(due, time.time()) - KEPT_FOR:.3f}", 2 * KEPT_FOR]
        return bool(CLAIM(self._store(), [self.key(entry)], arguments))

    def forget_after(self, moment: float, entries: Iterable[str]) -> None:
        """Let due times after a moment (epoch s) run again: the clock was set back. Raises RedisError."""
        with self._store().pipeline(transaction=False) as pipe:
            for entry in entries:
                pipe.zremrangebyscore(self.key(entry), f"({moment:.3f}", "+inf")
            pipe.execute()
