"""What beat reports of itself."""

from functools import cache
from typing import Any

from billiard.process import current_process
from celery import signals
from prometheus_client import Gauge

from celery_durable.metrics.exposition import registry, serve
from celery_durable.signals import beat_sent, beat_ticked


@cache
def _gauges() -> tuple[Gauge, Gauge, Gauge]:
    """Made at the first tick: every process of the app imports this module, and only beat may report a tick."""
    mode: Any = "mostrecent"
    return (
        Gauge(
            "celery_beat_last_tick_timestamp_seconds", "When beat last looked at its schedule.", multiprocess_mode=mode
        ),
        Gauge(
            "celery_beat_overdue_seconds",
            "How long the entry that waits longest has been due and is not sent, whatever the clock says.",
            multiprocess_mode=mode,
        ),
        Gauge(
            "celery_beat_lateness_seconds",
            "How long after its due time an entry was last sent.",
            ["entry"],
            multiprocess_mode=mode,
        ),
    )


def connect() -> None:
    """Count; a second time changes nothing."""
    beat_ticked.connect(_ticked)
    beat_sent.connect(_sent)
    signals.beat_init.connect(_serve)


def _ticked(overdue: float, **_: Any) -> None:
    last_tick, longest, _lateness = _gauges()
    last_tick.set_to_current_time()
    longest.set(overdue)


def _sent(entry: str, lateness: float, **_: Any) -> None:
    _gauges()[2].labels(entry).set(lateness)


def _serve(sender: Any, **_: Any) -> None:
    """Of a beat with a process of its own; what `worker --beat` starts is served by its worker."""
    durable = getattr(sender.app, "durable", None)
    if durable and durable.config.metrics_port is not None and current_process().name == "MainProcess":
        serve(durable.config.metrics_port, registry())
