"""Dangerous settings are refused, each with its name, what is wrong and what to do."""

from typing import Any

import pytest
from redis import ConnectionError as RedisAwayError

import timing
from celery_app import app
from delivery import checks
from delivery.checks import DangerousSettingsError, refuse_dangerous_settings
from settings import settings

GOOD = {"aof_enabled": 1, "maxmemory_policy": "noeviction", "maxmemory": 256 << 20, "cluster_enabled": 0}


class Redis:
    """One that says this in INFO."""

    def __init__(self, said: dict[str, Any]) -> None:
        self._said = said

    def info(self) -> dict[str, Any]:
        return self._said


@pytest.fixture
def info(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What both Redis say; a test changes it."""
    said = dict(GOOD)
    monkeypatch.setattr(checks, "broker_client", lambda: Redis(said))
    monkeypatch.setattr(checks, "results_client", lambda: Redis(said))
    monkeypatch.setattr(settings, "redis_memory_limit", "512m")
    return said


class Conf:
    """The app's settings with some changed."""

    def __init__(self, **changes: Any) -> None:
        self._changes = changes

    def __getattr__(self, name: str) -> Any:
        return self._changes[name] if name in self._changes else app.conf[name]


def transport(**changes: Any) -> dict[str, Any]:
    return {**app.conf.broker_transport_options, **changes}


def test_the_stacks_own_settings_are_not_refused(info: dict[str, Any]) -> None:
    refuse_dangerous_settings(app.conf)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task_time_limit": 90}, "task_time_limit: 90; it must be less than visibility_timeout (90 s)"),
        ({"task_time_limit": None}, "task_time_limit: None; it must be less than visibility_timeout (90 s)"),
        ({"task_soft_time_limit": 60}, "task_soft_time_limit: 60; it must be less than task_time_limit"),
        (
            {"broker_transport_options": transport(visibility_timeout=timing.MAX_DELAY)},
            f"the largest delay (timing.MAX_DELAY): {timing.MAX_DELAY}; it must be less than visibility_timeout",
        ),
        (
            {"broker_transport_options": transport(socket_timeout=3)},
            "broker_transport_options.socket_timeout: 3; a worker waits for messages on that connection",
        ),
        ({"worker_soft_shutdown_timeout": 20}, "worker_soft_shutdown_timeout: 20; it must be less than stop_grace_"),
        ({"task_acks_late": False}, "task_acks_late: off; a killed worker takes its running tasks with it"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_dangerous_setting_of_the_app(info: dict[str, Any], changes: dict[str, Any], said: str) -> None:
    with pytest.raises(DangerousSettingsError) as refused:
        refuse_dangerous_settings(Conf(**changes))
    assert f"  {said}" in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"aof_enabled": 0}, "appendonly is off; a restart loses all that came after its last snapshot"),
        ({"maxmemory_policy": "allkeys-lru"}, "maxmemory-policy is allkeys-lru; a full Redis throws messages away"),
        ({"cluster_enabled": 1}, "is a Redis Cluster, where kombu's keys are on different nodes"),
        ({"maxmemory": 300 << 20}, "maxmemory is 300 MiB and its container's limit 512 MiB"),
        ({"maxmemory": 0}, "maxmemory is 0 MiB and its container's limit 512 MiB"),
    ],
)
def test_a_dangerous_setting_of_redis(info: dict[str, Any], changes: dict[str, Any], said: str) -> None:
    info.update(changes)
    with pytest.raises(DangerousSettingsError) as refused:
        refuse_dangerous_settings(app.conf)
    for name in ("redis", "redis-results"):
        assert f"  {name}: {said}" in str(refused.value)


def test_a_container_without_a_known_limit_is_not_compared(
    info: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "redis_memory_limit", "")
    info["maxmemory"] = 0
    refuse_dangerous_settings(app.conf)


def test_all_that_is_wrong_is_said_at_once(info: dict[str, Any]) -> None:
    info.update(aof_enabled=0, maxmemory_policy="volatile-ttl")
    with pytest.raises(DangerousSettingsError) as refused:
        refuse_dangerous_settings(Conf(task_acks_late=False))
    assert len(str(refused.value).splitlines()) == 1 + 1 + 2 * 2


def test_a_redis_that_is_away_is_no_dangerous_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> None:
        raise RedisAwayError("away")

    monkeypatch.setattr(checks, "broker_client", away)
    monkeypatch.setattr(checks, "results_client", away)
    refuse_dangerous_settings(app.conf)
