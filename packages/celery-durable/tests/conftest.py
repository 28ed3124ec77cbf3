"""Fixtures that the tests share."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from hypothesis import settings
from redis import Redis

from celery_durable import Config, install

from .project import SHORT, Project, close
from .redis_server import RedisServer

settings.register_profile("long", max_examples=2000)  # pytest --hypothesis-profile=long


@pytest.fixture(scope="session")
def redis_process() -> Iterator[RedisServer]:
    """One Redis for the whole run; tests take `redis_server` or `module_redis`, which are empty."""
    server = RedisServer()
    yield server
    server.remove()


@pytest.fixture
def redis_server(redis_process: RedisServer) -> RedisServer:
    """A real Redis, empty."""
    redis_process.reset()
    return redis_process


@pytest.fixture(scope="module")
def module_redis(redis_process: RedisServer) -> RedisServer:
    """A real Redis, empty at the start of a module whose tests share a worker."""
    redis_process.reset()
    return redis_process


@pytest.fixture(scope="session")
def other_redis_process() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.remove()


@pytest.fixture
def other_redis(other_redis_process: RedisServer) -> RedisServer:
    """A second, empty Redis, for tests that stop the broker but not the store, or the reverse."""
    other_redis_process.reset()
    return other_redis_process


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[Any]:
    """A client of the test's Redis; replies are text."""
    with Redis.from_url(redis_server.url, decode_responses=True) as client:
        yield client


NewApp = Callable[..., Any]


@pytest.fixture
def new_app(redis_server: RedisServer) -> Iterator[NewApp]:
    """Makes apps of their own on the test's Redis, with short times: `new_app(conf={…}, **config)`."""
    with ExitStack() as stack:

        def make(conf: dict[str, Any] | None = None, **config: Any) -> Any:
            app = Celery("tests", set_as_current=False)
            app.conf.update({"broker_url": redis_server.url, "result_backend": redis_server.url, **(conf or {})})
            install(app, Config(**{"store": redis_server.url, **SHORT, **config}))
            stack.callback(close, app)
            return app

        yield make


@pytest.fixture
def app(new_app: NewApp) -> Any:
    """An app on the test's Redis that `install` was called for."""
    return new_app()


NewProject = Callable[..., Project]


@pytest.fixture
def new_project(redis_server: RedisServer, tmp_path: Path) -> Iterator[NewProject]:
    """Makes a project with real workers on the test's Redis: `new_project(tasks, conf={…}, **config)`."""
    with ExitStack() as stack:

        def make(tasks: str, conf: dict[str, Any] | None = None, **config: Any) -> Project:
            return stack.enter_context(Project(tmp_path, redis_server.url, tasks, conf, **config).open())

        yield make
