"""One reading of the times that messages carry."""

from datetime import UTC, datetime
from typing import Any


def epoch(text: str) -> float:
    """Epoch seconds of a time in ISO 8601. One without an offset is UTC, as for Celery's workers, whatever this
    machine's zone or the app's `timezone` is.

    Raises ValueError or OverflowError for anything else.
    """
    return aware(datetime.fromisoformat(text)).timestamp()


def aware(moment: datetime) -> datetime:
    """A time without an offset is UTC."""
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def eta_of(headers: Any) -> float:
    """The ETA in a message's headers in epoch seconds; 0 where it has none, or none that can be read."""
    eta = headers.get("eta")
    try:
        return epoch(eta) if eta else 0.0
    except (ValueError, TypeError, OverflowError):
        return 0.0
