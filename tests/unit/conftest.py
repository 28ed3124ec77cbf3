"""Fixtures that unit tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from celery_app import app
from unit.redis_server import RedisServer


@pytest.fixture(scope="session")
def redis_container() -> Iterator[RedisServer]:
    """One Redis for the whole run; tests take `redis_server`, which is empty."""
    server = RedisServer()
    yield server
    server.remove()


@pytest.fixture
def redis_server(redis_container: RedisServer) -> RedisServer:
    """A real Redis, empty."""
    redis_container.reset()
    return redis_container


@pytest.fixture
def eager() -> Iterator[None]:
    """Tasks run in this process when they are sent; no broker is asked."""
    app.conf.task_always_eager = True
    yield
    app.conf.task_always_eager = False
