"""Settings that would lose or repeat tasks are refused when a worker or beat starts, each with its reason.

`Config` checks itself when it is created; here the actual settings of the app and of Redis are checked.
"""

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from redis import RedisError

from celery_durable.errors import DangerousSettingsError

CONSUMER = "celery_durable.consumer:Consumer"


def refuse_dangerous_settings(app: Any) -> None:
    """Raises DangerousSettingsError. Settings of a Redis that does not answer are skipped: it may start later."""
    scheme = urlsplit(app.durable.broker_url).scheme
    if scheme not in ("redis", "rediss", "sentinel"):
        raise DangerousSettingsError(
            [f"broker_url: is {scheme}://; celery_durable supports redis://, rediss:// and sentinel://"]
        )
    if scheme == "sentinel" and "master_name" not in (app.conf.broker_transport_options or {}):
        raise DangerousSettingsError(["broker_transport_options.master_name: is missing; sentinel:// needs it"])
    wrong = [*_of_the_app(app)]
    for name, client in (("broker", app.durable.broker), ("store", app.durable.store)):
        try:
            wrong += _of_redis(name, client.info(), app.durable.config.redis_memory_limit)
        except RedisError:
            continue
    if wrong:
        raise DangerousSettingsError(wrong)


def _of_the_app(app: Any) -> Iterator[str]:
    conf, config = app.conf, app.durable.config
    if conf.task_soft_time_limit and conf.task_time_limit and conf.task_soft_time_limit >= conf.task_time_limit:
        yield (
            f"task_soft_time_limit: {conf.task_soft_time_limit:g}; it must be less than task_time_limit "
            f"({conf.task_time_limit:g})"
        )
    options = conf.broker_transport_options or {}
    if options.get("socket_timeout"):
        yield (
            f"broker_transport_options.socket_timeout: {options['socket_timeout']}; a worker waits for messages on "
            "that connection, and each time-out leaks a prefetch slot until it takes no more; for publishers use "
            "Config.publish_socket_timeout"
        )
    if conf.worker_soft_shutdown_timeout >= config.stop_grace_period:
        yield (
            f"worker_soft_shutdown_timeout: {conf.worker_soft_shutdown_timeout}; it must be less than "
            f"Config.stop_grace_period ({config.stop_grace_period:g} s), or the worker is killed during it"
        )
    if config.acks_late and not conf.task_acks_late:
        yield "task_acks_late: off; the running tasks of a killed worker are lost"
    if config.consumer and conf.worker_consumer != CONSUMER:
        yield (
            f"worker_consumer: {conf.worker_consumer}; messages are only safe with the library's consumer: "
            f"remove the setting, or use a subclass of {CONSUMER} and set Config(consumer=False)"
        )


def _of_redis(name: str, info: dict[str, Any], memory_limit: int | None) -> Iterator[str]:
    if int(info.get("cluster_enabled", 0)):
        yield f"{name}: is a Redis Cluster, where kombu's keys are on different nodes; use a single Redis"
    if not int(info.get("aof_enabled", 0)):
        yield f"{name}: appendonly is off; a restart loses all writes since the last snapshot"
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        yield f"{name}: maxmemory-policy is {policy}; a full Redis evicts messages, set noeviction"
    maxmemory = int(info.get("maxmemory", 0))
    if memory_limit and not 0 < 2 * maxmemory <= memory_limit:
        yield (
            f"{name}: maxmemory is {maxmemory >> 20} MiB and its container's limit {memory_limit >> 20} MiB; rewriting "
            "the AOF forks, so the limit must be at least twice maxmemory"
        )
