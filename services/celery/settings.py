"""The environment (`settings`), Celery's configuration (`CELERY`), and the configuration of its delivery (`DELIVERY`).

The comments in `CELERY` say what fails without a line; further defaults are set by celery_durable in its settings.py.
"""

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from kombu import Exchange, Queue
from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings

from celery_durable import Config, ConfigError
from celery_durable.config import Transport
from queues import DEFAULT, DEFAULT_PRIORITY, PRIORITIES, QUEUES


class Settings(BaseSettings):
    """Settings of the containers, one environment variable each; .env.example describes them."""

    redis_broker_url: str = Field("redis://redis:6379/0", pattern="^rediss?://")
    redis_results_url: str = Field("redis://redis-results:6379/0", pattern="^rediss?://")
    redis_username: str = "celery"
    redis_password_file: Path = Path("/run/secrets/redis_celery_password")
    task_events: bool = False
    transport: Transport = "atomic"
    corpus_dir: Path = Path("/corpus")  # demo
    max_document_bytes: int = Field(1_048_576, gt=0)  # demo
    max_queue_depth: int = Field(20_000, gt=0)  # demo
    redis_memory_limit: str = Field("", pattern=r"^(\d+[kmgKMG]?[bB]?)?$")  # of Redis' container; empty: unknown
    max_message_bytes: int = Field(1_048_576, gt=0)
    run_dir: Path = Path("/run/celery")
    state_dir: Path = Path("/run/celery")  # beat's schedule; a volume in beat's own container
    metrics_port: int | None = Field(9540, gt=0, le=65535)
    delivery: dict[str, Any] = {}  # fields of DELIVERY, as JSON; used by tests

    def with_user(self, url: str) -> str:
        """The URL with `redis_username`, unless it contains a login; the password is in `redis_password_file`."""
        parts = urlsplit(url)
        query = parts.query
        if parts.scheme == "rediss" and "ssl_cert_reqs" not in query:
            query = "&".join(filter(None, [query, "ssl_cert_reqs=required"]))  # Celery refuses rediss:// without it
        netloc = parts.netloc if "@" in parts.netloc else f"{self.redis_username}@{parts.netloc}"
        return urlunsplit((parts.scheme, netloc, parts.path, query, ""))

    @property
    def memory_limit(self) -> int | None:
        """Bytes in compose's `512m`; None if the limit is unknown."""
        match = re.fullmatch(r"(\d+)([kmg]?)b?", self.redis_memory_limit.lower())
        return int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[match[2]] if match else None


def load_settings() -> Settings:
    """Settings from the environment; SystemExit names each wrong variable, its value and the reason."""
    try:
        return Settings()
    except ValidationError as error:
        lines = [f"{str(e['loc'][0]).upper()}: {e['msg']}; it is {e['input']!r}" for e in error.errors()]
        raise SystemExit("\n".join(["Wrong settings (.env.example describes them):", *lines])) from error


settings = load_settings()

RESULT_TTL = 2 * 3600  # s; longer than a task may wait and run, and than a caller waits for it


def load_delivery() -> Config:
    """How messages are delivered; celery_durable.Config documents the fields. SystemExit names what is wrong."""
    fields: dict[str, Any] = {
        "transport": settings.transport,
        "store": settings.with_user(settings.redis_results_url),
        "password_file": settings.redis_password_file,
        "max_message_bytes": settings.max_message_bytes,
        "redis_memory_limit": settings.memory_limit,
        "heartbeat_file": settings.run_dir / "heartbeat",  # read by the health checks
        "metrics_port": settings.metrics_port,
        "reconcile_queue": QUEUES[0].name,  # its workers run no long tasks
        # >>> demo: its tasks take seconds, and its lessons and fault tests wait for these limits
        "soft_time_limit": 50,
        "time_limit": 60,
        # <<< demo
    }
    try:
        return Config(**{**fields, **settings.delivery})
    except ConfigError as error:
        raise SystemExit(f"Wrong settings (DELIVERY, MAX_MESSAGE_BYTES): {error}") from error


DELIVERY = load_delivery()

CELERY: dict[str, object] = {
    # --- Messages ---
    # JSON only: unpickling can run any code that a message contains.
    "task_serializer": "json",
    "result_serializer": "json",
    "accept_content": ["json"],
    # --- Queues: one per service level; publishing to an unknown queue is an error, not a queue without consumers ---
    "task_queues": [Queue(queue.name, Exchange(queue.name), routing_key=queue.name) for queue in QUEUES],
    "task_create_missing_queues": False,
    "task_default_queue": DEFAULT.name,
    "task_default_exchange": DEFAULT.name,
    "task_default_routing_key": DEFAULT.name,
    "task_routes": {task: {"queue": queue.name} for queue in QUEUES for task in queue.tasks},
    "task_default_priority": DEFAULT_PRIORITY,
    # --- The broker ---
    "broker_url": settings.with_user(settings.redis_broker_url),
    "broker_transport_options": {
        "priority_steps": list(range(PRIORITIES)),  # kombu's default maps 10 priorities to 4 steps
        "queue_order_strategy": "priority",  # the default takes turns among the queues of a worker
        "client_name": "celery-client",  # workers set their own names
    },
    "broker_pool_limit": 10,
    "worker_hijack_root_logger": True,
    # --- Results: stored only for tasks that enable them, and not for long ---
    "result_backend": settings.with_user(settings.redis_results_url),
    "result_expires": RESULT_TTL,
    "task_ignore_result": True,  # storing results costs a fifth of the throughput; tasks enable it
    "task_store_errors_even_if_ignored": True,
    "task_track_started": True,
    "result_extended": True,  # name, queue and arguments with the result, for Flower and for debugging
    # --- Events: only for Flower and celery-exporter ---
    "worker_send_task_events": settings.task_events,
    "task_send_sent_event": settings.task_events,
    # --- Beat ---
    "beat_schedule_filename": str(settings.state_dir / "beat-schedule"),
    # --- The app ---
    "timezone": "UTC",
    "imports": [
        "tasks.maintenance",
        # >>> demo: examples, the search service, the tour, and the tasks of `make chaos`
        "tasks.basic",
        "tasks.workflows",
        "tasks.advanced",
        "tasks.search",
        "tour.tasks.practices",
        "chaos.ledger",
        # <<< demo
    ],
}
