"""Settings that would lose or repeat work are refused when a worker, beat or the producer starts, each with its reason.

What depends on one another in timing.py is checked by its test; here it is what the app and Redis are really set to.
"""

import re
from collections.abc import Iterator
from typing import Any

from redis import RedisError

import timing
from settings import broker_client, results_client, settings


class DangerousSettingsError(SystemExit):
    """Names each setting, what is wrong with it, and what to do."""


def refuse_dangerous_settings(conf: Any) -> None:
    """Raises DangerousSettingsError. What Redis is set to is only looked at where it answers: it may start later."""
    wrong = [*_of_the_app(conf)]
    for name, client in (("redis", broker_client), ("redis-results", results_client)):
        try:
            wrong += _of_redis(name, client().info())
        except RedisError:
            continue
    if wrong:
        raise DangerousSettingsError("\n".join(["Dangerous settings, refused:", *(f"  {line}" for line in wrong)]))


def _of_the_app(conf: Any) -> Iterator[str]:
    transport = conf.broker_transport_options
    visibility = transport.get("visibility_timeout", 3600)
    for name, value in (
        ("task_time_limit", conf.task_time_limit),
        ("the largest delay (timing.MAX_DELAY)", timing.MAX_DELAY),
    ):
        if not value or value >= visibility:
            yield f"{name}: {value}; it must be less than visibility_timeout ({visibility} s), or tasks run twice"
    if not conf.task_soft_time_limit or conf.task_soft_time_limit >= (conf.task_time_limit or 0):
        yield f"task_soft_time_limit: {conf.task_soft_time_limit}; it must be less than task_time_limit"
    if transport.get("socket_timeout"):
        yield (
            f"broker_transport_options.socket_timeout: {transport['socket_timeout']}; a worker waits for messages on "
            "that connection, and each time-out leaks a prefetch slot until it is deaf; publishers have a time-out of "
            "their own in celery_app.py"
        )
    if conf.worker_soft_shutdown_timeout >= timing.STOP_GRACE_PERIOD:
        yield (
            f"worker_soft_shutdown_timeout: {conf.worker_soft_shutdown_timeout}; it must be less than "
            f"stop_grace_period ({timing.STOP_GRACE_PERIOD} s), or the worker is killed in the middle of it"
        )
    if not conf.task_acks_late:
        yield "task_acks_late: off; a killed worker takes its running tasks with it"


def _of_redis(name: str, info: dict[str, Any]) -> Iterator[str]:
    if int(info.get("cluster_enabled", 0)):
        yield f"{name}: is a Redis Cluster, where kombu's keys are on different nodes; use a single one, or Sentinel"
    if not int(info.get("aof_enabled", 0)):
        yield f"{name}: appendonly is off; a restart loses all that came after its last snapshot"
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        yield f"{name}: maxmemory-policy is {policy}; a full Redis throws messages away, set noeviction"
    limit = _bytes(settings.redis_memory_limit)
    maxmemory = int(info.get("maxmemory", 0))
    if limit and not 0 < 2 * maxmemory <= limit:
        yield (
            f"{name}: maxmemory is {maxmemory >> 20} MiB and its container's limit {limit >> 20} MiB; rewriting the "
            "AOF forks, so REDIS_MEMORY_LIMIT must be at least twice REDIS_MAXMEMORY"
        )


def _bytes(text: str) -> int:
    """Bytes in compose's `512m`; 0 for nothing."""
    match = re.fullmatch(r"(\d+)([kmg]?)b?", text.lower())
    return int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[match[2]] if match else 0
