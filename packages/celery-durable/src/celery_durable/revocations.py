"""Revoked tasks, stored in the broker: a revocation survives restarts, and new workers load it.

Celery sends a revocation only to the running workers, and each forgets it when it stops.

    <key_prefix>revoked     sorted set by when they were revoked (epoch s): "id:<task id>", or
                            "stamp:" and JSON [header, value] of a stamped header
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

    def __init__(self, config: Config, broker: Callable[[], Any], key: Callable[[], str]) -> None:
        self._config, self._broker, self._key = config, broker, key

    def remember(self, command: str, arguments: Mapping[str, Any]) -> None:
        """Store what a remote control command revokes; other commands are ignored. Raises RedisError."""
        if command == "revoke":
            self._add(f"{ID}{task_id}" for task_id in maybe_list(arguments.get("task_id")) or ())
        elif command == "revoke_by_stamped_headers":
            headers = arguments.get("headers") or {}
            pairs = (each.split("=", 1) for each in headers) if isinstance(headers, list) else headers.items()
            self._add(
                STAMP + json.dumps([header, value])
                for header, values in pairs
                for value in maybe_list(values)
            )  # fmt: skip

    def _add(self, members: Iterable[str]) -> None:
        now = time.time()
        if not (added := dict.fromkeys(members, now)):
            return
        with self._broker().pipeline(transaction=True) as pipe:
            pipe.zadd(self._key(), added)
            pipe.zremrangebyscore(self._key(), "-inf", now - self._config.revoked_for)
            pipe.zremrangebyrank(self._key(), 0, -1 - self._config.max_revoked)
            pipe.execute()

    def load(self) -> None:
        """Load the stored revocations into this worker's state. If Redis is unavailable the state does not change."""
        state.revoked.expires, state.revoked.maxlen = self._config.revoked_for, self._config.max_revoked
        since = time.time() - self._config.revoked_for
        try:
            members = self._broker().zrangebyscore(self._key(), since, "+inf")
        except RedisError as error:
            logger.warning("revoked tasks not read: %s", error)
            return
        state.revoked.update([member.removeprefix(ID) for member in members if member.startswith(ID)])
        for member in members:
            if member.startswith(STAMP):
                header, value = json.loads(member.removeprefix(STAMP))
                known = maybe_list(state.revoked_stamps.get(header)) or []
                if value not in known:
                    state.revoked_stamps[header] = [*known, value]
