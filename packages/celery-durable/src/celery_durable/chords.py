"""Chords that are under way: one without an end is found and counted, where Celery would wait without a word.

<key_prefix>chords            sorted set: group id by when to look at it next (epoch s)
<key_prefix>chords:overdue    sorted set: group id of those that are overdue, by when they were published (epoch s)
"""

import logging
import time
from collections.abc import Callable
from typing import Any

from celery_durable.config import Config

logger = logging.getLogger(__name__)

BATCH = 200  # chords a look
LOOK_AGAIN = 30  # s after a look at one that is overdue


class Chords:
    """The chords of one app."""

    def __init__(self, config: Config, store: Callable[[], Any]) -> None:
        self._config, self._store = config, store
        self.key = f"{config.key_prefix}chords"
        self.overdue_key = f"{self.key}:overdue"

    def begun(self, group_id: str) -> None:
        """A chord is being published. Raises RedisError."""
        self._store().zadd(self.key, {group_id: time.time() + self._config.chord_overdue_after})

    def look(self, backend: Any) -> int:
        """Look at those that should have ended: how many have not. Raises RedisError.

        Celery deletes a chord's size when its callback is published. A chord whose results have expired can never end.
        """
        store, now, late = self._store(), time.time(), self._config.chord_overdue_after
        due = store.zrangebyscore(self.key, "-inf", now, start=0, num=BATCH, withscores=True)
        if due:
            with backend.client.pipeline(transaction=False) as pipe:
                for group_id, _ in due:
                    pipe.exists(backend.get_key_for_group(group_id, ".s"))
                waits = pipe.execute()
            for (group_id, looked), is_open in zip(due, waits, strict=True):
                with store.pipeline(transaction=True) as pipe:
                    if is_open:
                        pipe.zadd(self.key, {group_id: now + LOOK_AGAIN})
                        pipe.zadd(self.overdue_key, {group_id: looked - late}, nx=True)
                    else:
                        pipe.zrem(self.key, group_id)
                        pipe.zrem(self.overdue_key, group_id)
                    _, changed = pipe.execute()
                if is_open and changed:
                    logger.warning(
                        "chord %s has not ended %.0f s after it was published: a member runs, waits, is a dead letter "
                        "(python -m celery_durable dlq) or was lost",
                        group_id,
                        now - looked + late,
                    )
        return self.overdue()

    def overdue(self) -> int:
        """How many chords were overdue at the last look. Raises RedisError."""
        return int(self._store().zcard(self.overdue_key))
