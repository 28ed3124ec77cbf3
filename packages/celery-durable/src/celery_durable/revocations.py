"""Revoked tasks, stored in the broker: a revocation survives restarts, and new workers load it.

Celery sends a revocation only to the running workers, and each forgets it when it stops.

    <key_prefix>revoked     sorted set by when they are forgotten (epoch s): "id:<task id>", or
                            "stamp:" and JSON [header, value] of a stamped header

They are kept for `revoked_for`. If messages wait in Redis for their ETA: for as long after the last of these is due.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from celery.utils.functional import maybe_list
from celery.worker import state
from redis import RedisError

from celery_durable.config import Config
from celery_durable.logs import get_logger

logger = get_logger(__name__)

ID, STAMP = "id:", "stamp:"


class Revocations:
    """The revocations of one app."""

    def __init__(
        self, config: Config, broker: Callable[[], Any], key: Callable[[], str], delayed: Callable[[], list[str]]
    ) -> None:
        """`delayed`: the sorted sets of messages that wait, by when they are due."""
        self._config, self._broker, self._key, self._delayed = config, broker, key, delayed

    def remember(self, command: str, arguments: Mapping[str, Any]) -> dict[str, float]:
        """Store what a remote control command revokes; other commands are ignored. Returns it, by when it is forgotten.
        Raises RedisError."""
        if command == "revoke":
            return self._add(f"{ID}{task_id}" for task_id in maybe_list(arguments.get("task_id")) or ())
        if command == "revoke_by_stamped_headers":
            headers = arguments.get("headers") or {}
            pairs = (each.split("=", 1) for each in headers) if isinstance(headers, list) else headers.items()
            return self._add(
                STAMP + json.dumps([header, value])
                for header, values in pairs
                for value in maybe_list(values)
            )  # fmt: skip
        return {}

    def _add(self, members: Iterable[str]) -> dict[str, float]:
        added, now, key = list(members), time.time(), self._key()
        if not added:
            return {}
        with self._broker().pipeline(transaction=True) as pipe:
            for delayed in self._delayed():
                pipe.zrange(delayed, -1, -1, withscores=True)
            last = max([now, *(due for found in pipe.execute() for _, due in found)])
            kept = dict.fromkeys(added, last + self._config.revoked_for)
            pipe.zadd(key, kept)
            pipe.zremrangebyscore(key, "-inf", now)
            pipe.zremrangebyrank(key, 0, -1 - self._config.max_revoked)
            pipe.execute()
        return kept

    def load(self) -> None:
        """Load the stored revocations into this worker's state. If Redis is unavailable the state does not change."""
        state.revoked.expires, state.revoked.maxlen = self._config.revoked_for, self._config.max_revoked
        try:
            self.know(dict(self._broker().zrangebyscore(self._key(), time.time(), "+inf", withscores=True)))
        except RedisError as error:
            logger.warning("revoked tasks not read: %s", error)

    def know(self, members: Mapping[str, float]) -> None:
        """Add revocations, by when they are forgotten, to this worker's state."""
        revoked_at = time.monotonic() - time.time() - self._config.revoked_for
        state.revoked.update(
            {member.removeprefix(ID): until + revoked_at for member, until in members.items() if member.startswith(ID)}
        )
        for member in members:
            if member.startswith(STAMP):
                header, value = json.loads(member.removeprefix(STAMP))
                known = maybe_list(state.revoked_stamps.get(header)) or []
                if value not in known:
                    state.revoked_stamps[header] = [*known, value]
