"""Parses the times in messages."""

from datetime import UTC, datetime
from typing import Any


def epoch(text: str) -> float:
    """Epoch seconds of a time in ISO 8601. A time without an offset is UTC, as in Celery's workers, independent of this
    machine's zone and the app's `timezone`.

    Raises ValueError or OverflowError for anything else.
    """
    return aware(datetime.fromisoformat(text)).timestamp()


def aware(moment: datetime) -> datetime:
    """The time with an offset; UTC if it has none."""
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def eta_of(headers: Any) -> float:
    """The ETA in a message's headers in epoch seconds; 0 if it has none, or it cannot be parsed."""
    eta = headers.get("eta")
    try:
        return epoch(eta) if eta else 0.0
    except (ValueError, TypeError, OverflowError):
        return 0.0
