"""One reading of the times that messages carry."""

from datetime import UTC, datetime, tzinfo
from typing import Any


def epoch(text: str, zone: tzinfo = UTC) -> float:
    """Epoch seconds of a time in ISO 8601. One without an offset is in `zone`, whatever this machine's own zone is.

    Raises ValueError or OverflowError for anything else.
    """
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).timestamp()


def eta_of(headers: Any, zone: tzinfo = UTC) -> float:
    """The ETA in a message's headers in epoch seconds; 0 where it has none, or none that can be read."""
    eta = headers.get("eta")
    try:
        return epoch(eta, zone) if eta else 0.0
    except (ValueError, TypeError, OverflowError):
        return 0.0


def zone_of(app: Any) -> tzinfo:
    """The zone that a worker of the app reads a time without an offset in: its `timezone` setting, else UTC."""
    return app.timezone if app.conf.timezone else UTC
