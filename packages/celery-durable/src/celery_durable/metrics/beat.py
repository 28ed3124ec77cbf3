"""Beat's metrics."""

from functools import cache
from typing import Any

from billiard.process import current_process
from celery import signals
from prometheus_client import Gauge

from celery_durable.metrics.exposition import registry, serve
from celery_durable.signals import beat_sent, beat_ticked


@cache
def _gauges() -> tuple[Gauge, Gauge, Gauge]:
    """Created at the first tick: every process of the app imports this module, but only beat may report a tick."""
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
    """Connect the receivers; a second call changes nothing."""
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
    """Serve the metrics of a beat in its own process; those of `worker --beat` are served by the worker."""
    durable = getattr(sender.app, "durable", None)
    if durable and durable.config.metrics_port is not None and current_process().name == "MainProcess":
        serve(durable.config.metrics_port, registry())
