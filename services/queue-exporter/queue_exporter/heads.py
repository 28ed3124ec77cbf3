"""How long the message at the head of a queue has been due.

kombu pushes at the left and pops at the right, so the head of each priority list (index -1) is its oldest message. The
oldest message of a queue is one of these heads, so only they are read, whatever the depth.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Stamps:
    """When a message was published and its ETA, in epoch seconds; None if it is not in the headers."""

    published_at: float | None = None
    eta: float | None = None


def read_stamps(raw: bytes) -> Stamps:
    """The times in the headers of a kombu message; none if it cannot be decoded: its worker will report that."""
    try:
        headers = json.loads(raw)["headers"]
        return Stamps(_number(headers.get("published_at")), _epoch(headers.get("eta")))
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return Stamps()


def _number(value: object) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _epoch(value: object) -> float | None:
    if not isinstance(value, str):
        return None
    try:
        eta = datetime.fromisoformat(value)
        # Celery writes its ETA with an offset; one without is UTC, as in Celery.
        return (eta if eta.tzinfo else eta.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


@dataclass(frozen=True)
class _Seen:
    digest: bytes
    since: float


class HeadAges(Generic[K]):
    """Age of each list's head; stores when each was first seen, for messages without a publish time."""

    def __init__(self) -> None:
        self._seen: dict[K, _Seen] = {}

    def ages(self, heads: Mapping[K, bytes | None], now: float) -> dict[K, float]:
        """Seconds that the head of each list has been due at `now` (epoch seconds); 0 for an empty list.

        Counted from `published_at`, or from `eta` if that is later. If `published_at` is missing or in the future (a
        wrong clock or unit), from when this head was first seen: a lower bound.
        """
        ages = {}
        for key, raw in heads.items():
            if raw is None:
                self._seen.pop(key, None)
                ages[key] = 0.0
                continue
            stamps = read_stamps(raw)
            since = self._first_seen(key, raw, now)
            if stamps.published_at is not None and 0 < stamps.published_at <= now:
                since = stamps.published_at
            ages[key] = max(0.0, now - max(since, stamps.eta or 0.0))
        return ages

    def _first_seen(self, key: K, raw: bytes, now: float) -> float:
        digest = blake2b(raw, digest_size=16).digest()  # not the message itself: it may be large
        seen = self._seen.get(key)
        if seen is None or seen.digest != digest:
            seen = self._seen[key] = _Seen(digest, now)
        return seen.since
