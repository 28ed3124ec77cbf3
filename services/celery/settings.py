"""What comes from the environment (`settings`) and Celery's own configuration (`CELERY`).

Each line of `CELERY` says what goes wrong without it.
"""

import os
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from kombu import Exchange, Queue
from kombu.transport.redis import Channel
from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings
from redis import Redis

import timing


class Settings(BaseSettings):
    """Settings of the containers, one environment variable each; .env.example describes them."""

    redis_broker_url: str = Field("redis://redis:6379/0", pattern="^rediss?://")
    redis_results_url: str = Field("redis://redis-results:6379/0", pattern="^rediss?://")
    redis_username: str = "celery"
    redis_password_file: Path = Path("/run/secrets/redis_celery_password")
    compose_profiles: str = ""
    corpus_dir: Path = Path("/corpus")
    max_document_bytes: int = Field(1_048_576, gt=0)
    max_queue_depth: int = Field(20_000, gt=0)
    redis_memory_limit: str = Field("", pattern=r"^(\d+[kmgKMG]?[bB]?)?$")  # of Redis' container; empty: not known
    max_message_bytes: int = Field(1_048_576, gt=0)
    run_dir: Path = Path("/run/celery")
    state_dir: Path = Path("/run/celery")  # beat's schedule; a volume in beat's own container
    metrics_port: int = Field(9540, ge=0, le=65535)

    def with_login(self, url: str) -> str:
        """The URL with `redis_username` and the password of `redis_password_file`, unless it has a login of its own.

        Raises SystemExit when the file cannot be read: nothing works without Redis.
        """
        parts = urlsplit(url)
        query = parts.query
        if parts.scheme == "rediss" and "ssl_cert_reqs" not in query:
            query = "&".join(filter(None, [query, "ssl_cert_reqs=required"]))  # Celery refuses rediss:// without it
        netloc = parts.netloc
        if "@" not in netloc:
            try:
                password = self.redis_password_file.read_text().strip()
            except OSError as error:
                raise SystemExit(
                    f"REDIS_PASSWORD_FILE: cannot read {self.redis_password_file} ({error.strerror}); "
                    f"`make up` makes the secrets, and compose mounts them under /run/secrets"
                ) from error
            netloc = f"{quote(self.redis_username)}:{quote(password, safe='')}@{netloc}"
        return urlunsplit((parts.scheme, netloc, parts.path, query, ""))

    @property
    def events(self) -> bool:
        """Whether anybody reads the event stream (Flower, celery-exporter)."""
        return "events" in self.compose_profiles.split(",")


def load_settings() -> Settings:
    """Settings from the environment; SystemExit names each wrong variable, its value and the reason."""
    try:
        return Settings()
    except ValidationError as error:
        lines = [f"{str(e['loc'][0]).upper()}: {e['msg']}; it is {e['input']!r}" for e in error.errors()]
        raise SystemExit("\n".join(["Wrong settings (.env.example describes them):", *lines])) from error


settings = load_settings()


@cache
def _client(_pid: int, url: str) -> Any:  # redis-py types every reply bytes | str, whatever decode_responses says
    return Redis.from_url(
        url,
        decode_responses=True,
        socket_connect_timeout=timing.PUBLISH_CONNECT_TIMEOUT,
        socket_timeout=timing.PUBLISH_SOCKET_TIMEOUT,
        health_check_interval=timing.HEALTH_CHECK_INTERVAL,
    )


def results_client() -> Any:
    """This process's client of redis-results. One a process: a socket shared over a fork mixes up replies."""
    return _client(os.getpid(), settings.with_login(settings.redis_results_url))


def broker_client() -> Any:
    """This process's client of the broker, for what is not a message: queue depths, the registry of workers."""
    return _client(os.getpid(), settings.with_login(settings.redis_broker_url))


HIGH, LOW = "high", "low"
PRIORITIES = 10  # 0 is the most urgent, 9 the least


def priority_lists(queue: str) -> list[str]:
    """The Redis lists of a queue, priority 0 to 9.

    kombu's separator of two control characters is left as it is: a client with another one (`sep`) cannot read the
    bindings of the rest, and one such client stops all of them from publishing.
    """
    return [queue, *(f"{queue}{Channel.sep}{step}" for step in range(1, PRIORITIES))]


CELERY: dict[str, object] = {
    # --- Messages ---
    # JSON only: unpickling runs whatever code a message brings.
    "task_serializer": "json",
    "result_serializer": "json",
    "accept_content": ["json"],
    # --- Queues: one a service level; a name that nobody consumes is refused instead of filling up unseen ---
    "task_queues": [Queue(name, Exchange(name), routing_key=name) for name in (HIGH, LOW)],
    "task_create_missing_queues": False,
    "task_default_queue": LOW,
    "task_default_exchange": LOW,
    "task_default_routing_key": LOW,
    "task_routes": {
        "tasks.search.search": {"queue": HIGH},
        "tasks.search.stats": {"queue": HIGH},
    },
    # On Redis 0 is the most urgent: unmarked tasks (0) would overtake everything that was given a priority.
    "task_default_priority": 5,
    # --- The broker ---
    "broker_url": settings.with_login(settings.redis_broker_url),
    "broker_transport": "delivery.transport:Transport",
    "broker_transport_options": {
        "visibility_timeout": timing.VISIBILITY_TIMEOUT,
        "unacked_restore_interval": timing.RESTORE_INTERVAL,
        "unacked_restore_throttle": 1,
        "unacked_mutex_expire": timing.RESTORE_MUTEX_EXPIRE,
        "priority_steps": list(range(PRIORITIES)),  # kombu's default of 4 steps folds 10 priorities into 4
        "queue_order_strategy": "priority",  # the default takes turns between queues, whatever their priority
        "health_check_interval": timing.HEALTH_CHECK_INTERVAL,
        "socket_keepalive": True,
        "client_name": "celery-client",  # worker.py gives each worker a name of its own
        "max_message_bytes": settings.max_message_bytes,
    },
    "worker_consumer": "delivery.consumer:Consumer",  # Celery's falls over malformed messages, and over them again
    "broker_connection_retry_on_startup": True,
    "broker_channel_error_retry": True,  # a Redis that refuses writes (full, no disk) ends the worker otherwise
    "broker_connection_max_retries": None,  # the default gives up after 100 tries and exits
    "broker_pool_limit": 10,
    # A publish that fails is tried again after 0.2 and 0.7 s, then the caller gets the error: on a frozen Redis within
    # 16 s. The first try on a new connection takes two time-outs there, and a third retry took 17 s in all.
    "task_publish_retry_policy": {"max_retries": 2, "interval_start": 0.2, "interval_step": 0.5, "interval_max": 1},
    # --- Running: a task's message is gone only when the task is done ---
    "task_acks_late": True,  # the default acknowledges first: a killed child loses its task (12 of 1000)
    "task_reject_on_worker_lost": True,  # acks_late alone acknowledges a task whose child was killed
    "task_retry_on_worker_lost": True,  # a task that always kills its child would come back for ever
    "task_time_limit": timing.HARD_TIME_LIMIT,
    "task_soft_time_limit": timing.SOFT_TIME_LIMIT,
    # As many messages as slots, those that run included: none waits in a busy worker while another is idle, or for the
    # visibility timeout when it is killed. Throughput is the same with 64.
    "worker_prefetch_multiplier": 1,
    # Losing Redis for a moment must not cancel running tasks: with True, 4 of 8 were lost.
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    "worker_soft_shutdown_timeout": timing.SOFT_SHUTDOWN,
    "worker_enable_soft_shutdown_on_idle": True,  # prefetched and ETA tasks count as idle, and must go back too
    "worker_hijack_root_logger": True,
    # --- Results: kept where they are wanted, and not for long ---
    "result_backend": settings.with_login(settings.redis_results_url),
    "result_expires": timing.RESULT_TTL,
    "task_ignore_result": True,  # a result nobody reads costs a fifth of the throughput; tasks opt in
    "task_store_errors_even_if_ignored": True,
    "task_track_started": True,
    "result_extended": True,  # name, queue and arguments with the result: what Flower and a reader need
    "result_backend_always_retry": True,  # otherwise a task fails because its result could not be stored
    "result_backend_max_retries": 20,
    "result_backend_max_sleep_between_retries_ms": 2000,
    "redis_socket_connect_timeout": timing.PUBLISH_CONNECT_TIMEOUT,
    "redis_socket_timeout": timing.PUBLISH_SOCKET_TIMEOUT,
    "redis_socket_keepalive": True,
    "redis_retry_on_timeout": True,
    # --- Events: for Flower and celery-exporter alone ---
    "worker_send_task_events": settings.events,
    "task_send_sent_event": settings.events,
    # --- Beat ---
    "beat_scheduler": "scheduler:Scheduler",
    "beat_schedule_filename": str(settings.state_dir / "beat-schedule"),
    "beat_max_loop_interval": timing.BEAT_MAX_LOOP,
    # --- The app ---
    "timezone": "UTC",
    "imports": [
        "tasks.basic",
        "tasks.workflows",
        "tasks.advanced",
        "tasks.practices",
        "tasks.ledger",
        "tasks.search",
        "tasks.maintenance",
    ],
}
