"""Monitors unfinished chords: one that does not end is logged and counted. Celery would wait for ever without a log.

<key_prefix>chords            sorted set: group id by the time of the next check (epoch s)
<key_prefix>chords:overdue    sorted set: group id of overdue chords by when they were published (epoch s)
"""

import time
from collections.abc import Callable
from typing import Any

from celery_durable.config import Config
from celery_durable.logs import get_logger

logger = get_logger(__name__)

BATCH = 200  # chords per check
CHECK_AGAIN = 30  # s between two checks of an overdue chord


class Chords:
    """The chords of one app."""

    def __init__(self, config: Config, store: Callable[[], Any]) -> None:
        self._config, self._store = config, store
        self.key = f"{config.key_prefix}chords"
        self.overdue_key = f"{self.key}:overdue"

    def begun(self, group_id: str) -> None:
        """Record a chord that is being published. Raises RedisError."""
        self._store().zadd(self.key, {group_id: time.time() + self._config.chord_overdue_after})

    def look(self, backend: Any) -> int:
        """Check the chords that should have ended. Returns how many have not. Raises RedisError.

        Celery deletes a chord's size when its callback is published, so the size key shows whether it has ended. A
        chord whose results have expired can never end.
        """
        store, now, late = self._store(), time.time(), self._config.chord_overdue_after
        due = store.zrangebyscore(self.key, "-inf", now, start=0, num=BATCH, withscores=True)
        if due:
            with backend.client.pipeline(transaction=False) as pipe:
                for group_id, _ in due:
                    pipe.exists(backend.get_key_for_group(group_id, ".s"))
                waits = pipe.execute()
            for (group_id, checked), is_open in zip(due, waits, strict=True):
                with store.pipeline(transaction=True) as pipe:
                    if is_open:
                        pipe.zadd(self.key, {group_id: now + CHECK_AGAIN})
                        pipe.zadd(self.overdue_key, {group_id: checked - late}, nx=True)
                    else:
                        pipe.zrem(self.key, group_id)
                        pipe.zrem(self.overdue_key, group_id)
                    _, changed = pipe.execute()
                if is_open and changed:
                    logger.warning(
                        "chord %s has not ended %.0f s after it was published: a member runs, waits, is a dead letter "
                        "(python -m celery_durable dlq) or was lost",
                        group_id,
                        now - checked + late,
                    )
        return self.overdue()

    def overdue(self) -> int:
        """How many chords were overdue at the last check. Raises RedisError."""
        return int(self._store().zcard(self.overdue_key))
