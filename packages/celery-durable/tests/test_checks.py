"""Dangerous settings are refused when a worker or beat starts; each problem has its setting, reason and remedy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from redis import ConnectionError as RedisAwayError

from celery_durable import Config, DangerousSettingsError, install
from celery_durable.checks import refuse_dangerous_settings
from celery_durable.scheduler import Scheduler

from .conftest import NewApp, NewProject
from .project import Project
from .redis_server import RedisServer

STORE = "redis://127.0.0.1:1/0"
GOOD = {"aof_enabled": 1, "maxmemory_policy": "noeviction", "maxmemory": 256 << 20, "cluster_enabled": 0}


class Redis:
    """A Redis whose INFO has these values."""

    def __init__(self, said: dict[str, Any]) -> None:
        self._said = said

    def info(self) -> dict[str, Any]:
        if not self._said:
            raise RedisAwayError("away")
        return self._said


@pytest.fixture
def info() -> dict[str, Any]:
    """INFO of both Redis; tests change it."""
    return dict(GOOD)


Refused = Callable[..., list[str]]


@pytest.fixture
def refused(info: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Refused:
    """The problems of an app with some settings."""

    def look(conf: dict[str, Any] | None = None, **config: Any) -> list[str]:
        app: Any = Celery("checked", set_as_current=False, broker=STORE)
        app.conf.update(conf or {})
        durable = install(app, Config(**{"store": STORE, "redis_memory_limit": 512 << 20, **config}))
        monkeypatch.setattr(type(durable), "broker", Redis(info))
        monkeypatch.setattr(type(durable), "store", Redis(info))
        try:
            refuse_dangerous_settings(app)
        except DangerousSettingsError as error:
            return error.problems
        return []

    return look


def test_the_librarys_own_settings_are_not_refused(refused: Refused) -> None:
    assert refused() == []


@pytest.mark.parametrize(
    ("conf", "said"),
    [
        ({"task_soft_time_limit": 3600}, "task_soft_time_limit: 3600; it must be less than task_time_limit (3600)"),
        (
            {"broker_transport_options": {"socket_timeout": 3}},
            "broker_transport_options.socket_timeout: 3; a worker waits for messages on that connection, and each "
            "time-out leaks a prefetch slot until it takes no more; for publishers use Config.publish_socket_timeout",
        ),
        ({"worker_soft_shutdown_timeout": 20}, "worker_soft_shutdown_timeout: 20; it must be less than Config.stop_g"),
        ({"task_acks_late": False}, "task_acks_late: off; the running tasks of a killed worker are lost"),
        ({"worker_consumer": "my.module:Consumer"}, "worker_consumer: my.module:Consumer; messages are only safe with"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_dangerous_setting_of_the_app(refused: Refused, conf: dict[str, Any], said: str) -> None:
    assert any(problem.startswith(said) for problem in refused(conf)), refused(conf)


@pytest.mark.parametrize(
    ("conf", "config"),
    [
        ({"task_acks_late": False}, {"acks_late": False}),
        ({"worker_consumer": "my.module:Consumer"}, {"consumer": False}),
    ],
)
def test_a_protection_that_is_switched_off_is_not_asked_for(
    refused: Refused, conf: dict[str, Any], config: dict[str, Any]
) -> None:
    assert refused(conf, **config) == []


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"aof_enabled": 0}, "appendonly is off; a restart loses all writes since the last snapshot"),
        ({"maxmemory_policy": "allkeys-lru"}, "maxmemory-policy is allkeys-lru; a full Redis evicts messages"),
        ({"cluster_enabled": 1}, "is a Redis Cluster, where kombu's keys are on different nodes"),
        ({"maxmemory": 300 << 20}, "maxmemory is 300 MiB and its container's limit 512 MiB"),
        ({"maxmemory": 0}, "maxmemory is 0 MiB and its container's limit 512 MiB"),
    ],
)
def test_a_dangerous_setting_of_redis(
    refused: Refused, info: dict[str, Any], said: dict[str, Any], problem: str
) -> None:
    info.update(said)
    found = refused()
    for name in ("broker", "store"):
        assert any(line.startswith(f"{name}: {problem}") for line in found)


def test_a_container_without_a_known_limit_is_not_compared(refused: Refused, info: dict[str, Any]) -> None:
    info["maxmemory"] = 0
    assert refused(redis_memory_limit=None) == []


def test_each_problem_has_a_line() -> None:
    assert str(DangerousSettingsError(["a: 1", "b: 2"])) == "Dangerous settings, refused:\n  a: 1\n  b: 2"


def test_all_problems_are_reported_at_once(refused: Refused, info: dict[str, Any]) -> None:
    info.update(aof_enabled=0, maxmemory_policy="volatile-ttl")
    assert len(refused({"task_acks_late": False})) == 1 + 2 * 2


def test_an_unreachable_redis_is_no_dangerous_setting(refused: Refused, info: dict[str, Any]) -> None:
    info.clear()
    assert refused() == []


def test_a_real_redis_is_asked(new_app: NewApp, redis_server: RedisServer) -> None:
    app = new_app()
    refuse_dangerous_settings(app)
    redis_server.client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(DangerousSettingsError, match="broker: maxmemory-policy is allkeys-lru"):
            refuse_dangerous_settings(app)
    finally:
        redis_server.client.config_set("maxmemory-policy", "noeviction")


def test_a_user_who_may_not_ask_is_no_dangerous_setting(new_app: NewApp, redis_server: RedisServer) -> None:
    redis_server.client.acl_setuser("small", enabled=True, nopass=True, keys=["*"], categories=["+@all", "-@dangerous"])
    url = redis_server.url.replace("redis://", "redis://small:x@")
    refuse_dangerous_settings(new_app({"broker_url": url}, store=url))


# --- Brokers that the library does not work with ---

OTHERS = ["amqp://127.0.0.1:1//", "redis+socket:///nowhere", "memory://", "sqs://"]


@pytest.mark.parametrize("url", OTHERS)
def test_another_broker_is_refused(refused: Refused, url: str) -> None:
    (problem,) = refused({"broker_url": url})
    scheme = url.partition(":")[0]
    assert problem == f"broker_url: is {scheme}://; celery_durable supports redis://, rediss:// and sentinel://"


@pytest.fixture
def project_of(tmp_path: Path, new_project: NewProject, redis_server: RedisServer) -> Callable[[str], Project]:
    return lambda url: new_project("", {"broker_url": url})


@pytest.mark.parametrize("url", OTHERS[:2])
@pytest.mark.parametrize("program", [["worker", "-c", "1"], ["beat"]], ids=["worker", "beat"])
def test_worker_and_beat_end_with_a_readable_message(
    project_of: Callable[[str], Project], url: str, program: list[str]
) -> None:
    started = project_of(url).start("refused", *program, "--loglevel=INFO")
    assert started.process.wait(60) == 1
    assert "broker_url: is " in started.log
    assert "celery_durable supports redis://, rediss:// and sentinel://" in started.log
    assert "Traceback" not in started.log


@pytest.mark.parametrize("program", [["worker", "-c", "1"], ["worker", "-B", "-c", "1"], ["beat"]], ids=" ".join)
def test_dangerous_settings_end_worker_and_beat_with_a_readable_message(
    new_project: NewProject, program: list[str]
) -> None:
    project = new_project("", {"task_acks_late": False, "task_soft_time_limit": 1000})
    started = project.start("refused", *program, "--loglevel=INFO")
    assert started.process.wait(60) == 1
    lines = started.log.splitlines()
    assert any("task_acks_late: off; the running tasks of a killed worker are lost" in line for line in lines)
    assert any("task_soft_time_limit: 1000; it must be less than" in line for line in lines)
    assert "Traceback" not in started.log


def test_the_checks_run_before_a_message_is_taken(new_project: NewProject) -> None:
    project = new_project("", {"task_acks_late": False})
    project.client.lpush("celery", "}{")
    assert project.start("refused", "worker", "-c", "1").process.wait(60) == 1
    assert project.client.lrange("celery", 0, -1) == ["}{"]
    assert not project.client.exists("celery-durable:workers")


def test_creating_a_scheduler_runs_the_checks(new_app: NewApp, tmp_path: Path) -> None:
    with pytest.raises(DangerousSettingsError):
        Scheduler(new_app({"task_acks_late": False}), schedule_filename=str(tmp_path / "schedule"))
