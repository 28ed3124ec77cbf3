"""Celery's settings: the library's defaults, and the transport options that it enforces.

The app's own settings override the defaults, whenever they are made. One log line names each transport option of the
app that the library replaces.
"""

from typing import Any

from celery_durable.checks import CONSUMER
from celery_durable.config import PUBLISH_TRIES, Config
from celery_durable.logs import get_logger

logger = get_logger(__name__)

SCHEDULER = "celery_durable.scheduler:Scheduler"
BACKEND = "celery_durable.backend:RedisBackend"


def defaults(config: Config) -> dict[str, Any]:
    """The library's defaults of Celery's settings, each with what fails without it."""
    wanted: dict[str, Any] = {
        # --- The broker ---
        "broker_connection_retry_on_startup": True,
        "broker_channel_error_retry": True,  # otherwise a Redis that refuses writes (full, no disk) ends the worker
        "broker_connection_max_retries": None,  # the default gives up after 100 tries and exits
        # A publish that fails is tried again after 0.2 and 0.7 s, then the caller gets the error: within 16 s if Redis
        # is frozen. The first try on a new connection takes two time-outs, and with a third retry it was 17 s in total.
        "task_publish_retry_policy": {
            "max_retries": PUBLISH_TRIES - 1,
            "interval_start": 0.2,
            "interval_step": 0.5,
            "interval_max": 1,
        },
        # --- Running: a task's message is removed only when the task is done ---
        "task_acks_late": config.acks_late,  # with early acknowledgement killed children lost 12 of 1000 tasks
        # Without late acknowledgement a worker would take more than it can run, and lose it when it is killed.
        "worker_disable_prefetch": not config.acks_late,
        "task_reject_on_worker_lost": config.worker_lost,  # acks_late alone acknowledges if the child is killed
        "task_retry_on_worker_lost": config.worker_lost,  # else a task that kills its child is redelivered for ever
        "task_time_limit": config.time_limit,
        "task_soft_time_limit": config.soft_time_limit,
        # As many messages as slots, running ones included: none waits in a busy worker while another is idle, or for
        # the visibility timeout when the worker is killed. Throughput is the same with 64.
        "worker_prefetch_multiplier": 1,
        # A held message that waits for an ETA or a rate limit takes about 8 kB of the worker's memory.
        "worker_eta_task_limit": config.max_held,
        # A short outage of Redis must not cancel running tasks: with True, 4 of 8 were lost.
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_soft_shutdown_timeout": config.soft_shutdown,
        "worker_enable_soft_shutdown_on_idle": True,  # prefetched and ETA tasks count as idle, and must be requeued too
        # --- Results ---
        "result_backend_always_retry": True,  # otherwise a task fails because its result could not be stored
        "result_backend_max_retries": 20,
        "result_backend_max_sleep_between_retries_ms": 2000,
        "redis_socket_connect_timeout": config.publish_connect_timeout,
        "redis_socket_timeout": config.publish_socket_timeout,
        "redis_socket_keepalive": True,
        "redis_retry_on_timeout": True,
        # --- Beat ---
        "beat_scheduler": SCHEDULER,
        "beat_max_loop_interval": config.beat_max_loop,
    }
    if config.consumer:
        wanted["worker_consumer"] = CONSUMER  # Celery's crashes on malformed messages, again after each restart
    return wanted


class TransportOptions:
    """Options of kombu's transport for the connections of one app."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._warned: set[str] = set()

    def _enforced(self) -> dict[str, Any]:
        """What the delivery guarantees depend on: set by `Config`, not by broker_transport_options."""
        return {
            "visibility_timeout": self._config.visibility_timeout,
            "unacked_restore_interval": self._config.restore_interval,
            "unacked_restore_throttle": 1,
            "unacked_mutex_expire": self._config.restore_mutex_expire,
            "ack_emulation": True,  # without it nothing that a worker holds survives the worker
        }

    def of_worker(self, own: dict[str, Any], call: dict[str, Any] | None, name: str) -> dict[str, Any]:
        """For a consumer's connection. `own`: the app's broker_transport_options; `call`: those of the call."""
        enforced = self._enforced()
        self._warn(own, enforced)
        defaults = {"health_check_interval": self._config.health_check_interval, "socket_keepalive": True}
        named = {"client_name": name} if name else {}
        return {**defaults, **own, **named, **enforced, **(call or {})}

    def of_publisher(self, own: dict[str, Any], call: dict[str, Any] | None, name: str) -> dict[str, Any]:
        """For a publisher's connection: without a socket timeout a frozen Redis blocks the caller for over 45 s.

        Health checks are off: a PING before the message would wait for a time-out of its own. kombu's own retries are
        off: on a new connection that is refused they block a publish for 6 s.
        """
        patience: dict[str, Any] = {"health_check_interval": 0, "max_retries": 0}
        if self._config.publish_timeout:
            patience["socket_connect_timeout"] = self._config.publish_connect_timeout
            patience["socket_timeout"] = self._config.publish_socket_timeout
        return {**self.of_worker(own, None, name), **patience, **(call or {})}

    def _warn(self, own: dict[str, Any], enforced: dict[str, Any]) -> None:
        for name in own.keys() & enforced.keys() - self._warned:
            self._warned.add(name)
            if own[name] != enforced[name]:
                logger.warning(
                    "broker_transport_options.%s: %r is replaced by %r; see celery_durable.Config",
                    name,
                    own[name],
                    enforced[name],
                )
