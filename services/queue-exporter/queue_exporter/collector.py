"""Turns a reading of the broker into Prometheus metrics, and logs when the broker's state changes."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from redis import RedisError

from .broker import Broker, Reading

log = logging.getLogger(__name__)


class QueueCollector(Collector):
    """Reads the broker at each scrape. A value that could not be read has no sample, rather than a zero."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._lock = threading.Lock()
        self._state: tuple[str, ...] | None = None

    def collect(self) -> Iterator[Metric]:
        started = time.perf_counter()
        reading = self._read()
        duration = time.perf_counter() - started
        yield GaugeMetricFamily("celery_broker_up", "1 if Redis answered this scrape, else 0.", 1 if reading else 0)
        if reading:
            yield from _metrics(reading)
        yield GaugeMetricFamily(
            "celery_queue_exporter_scrape_duration_seconds", "Seconds that reading Redis took in this scrape.", duration
        )

    def _read(self) -> Reading | None:
        try:
            reading = self._broker.read()
        except (RedisError, OSError) as error:  # TimeoutError is an OSError
            self._log_change((type(error).__name__,), logging.ERROR, f"broker unavailable: {error}")
            return None
        problems = sorted(reading.problems)
        level = logging.WARNING if problems else logging.INFO
        self._log_change(("up", *problems), level, "; ".join(["broker up", *problems]))
        return reading

    def _log_change(self, state: tuple[str, ...], level: int, message: str) -> None:
        """Log only changes of the state: one line per event, not per scrape."""
        with self._lock:
            if state != self._state:
                self._state = state
                log.log(level, message)


def _metrics(reading: Reading) -> Iterator[Metric]:
    messages = GaugeMetricFamily(
        "celery_queue_messages",
        "Messages in a queue, by priority step (0 is the most urgent).",
        labels=["queue", "priority", "state"],
    )
    for (queue, step), length in reading.waiting.items():
        messages.add_metric([queue, str(step), "waiting"], length)
    yield messages

    ages = GaugeMetricFamily(
        "celery_queue_oldest_message_age_seconds",
        "Seconds that the oldest waiting message has been due, 0 if none waits; "
        "without a publish time, since it was first seen at the head.",
        labels=["queue"],
    )
    for queue, age in reading.oldest_age.items():
        ages.add_metric([queue], age)
    yield ages

    delayed = GaugeMetricFamily(
        "celery_queue_delayed_messages", "Messages that wait in Redis for their ETA.", labels=["queue"]
    )
    for queue, length in reading.delayed.items():
        delayed.add_metric([queue], length)
    yield delayed

    due = GaugeMetricFamily(
        "celery_queue_next_due_timestamp_seconds",
        "When the next delayed message is due, in epoch seconds; no sample if there is none.",
        labels=["queue"],
    )
    for queue, timestamp in reading.next_due.items():
        due.add_metric([queue], timestamp)
    yield due

    if reading.unacked is not None:
        yield GaugeMetricFamily(
            "celery_unacked_messages", "Messages delivered to workers and not yet acknowledged.", reading.unacked
        )

    if reading.dead_letters is not None:
        yield GaugeMetricFamily("celery_dead_letters", "Messages in the stream of dead letters.", reading.dead_letters)

    if reading.consumers is not None:
        consumers = GaugeMetricFamily(
            "celery_queue_consumers", "Workers connected to the broker that consume a queue.", labels=["queue"]
        )
        for queue, workers in reading.consumers.items():
            consumers.add_metric([queue], workers)
        yield consumers

    heartbeats = GaugeMetricFamily(
        "celery_worker_heartbeat_timestamp_seconds",
        "When a registered worker last renewed its registration, in epoch seconds.",
        labels=["worker"],
    )
    for nodename, heartbeat in reading.heartbeats.items():
        heartbeats.add_metric([nodename], heartbeat)
    yield heartbeats
