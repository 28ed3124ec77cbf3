"""Fixtures that unit tests share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis

from celery_app import app
from tests.redis_server import RedisServer


@pytest.fixture(scope="session")
def redis_container() -> Iterator[RedisServer]:
    """One Redis for the whole run; tests take `redis_server`, which is empty."""
    server = RedisServer(in_container=True)  # the stack's version
    yield server
    server.remove()


@pytest.fixture
def redis_server(redis_container: RedisServer) -> RedisServer:
    """A real Redis, empty."""
    redis_container.reset()
    return redis_container


@pytest.fixture
def client(redis_server: RedisServer) -> Redis:
    """A client of the test's Redis, like the services': replies are text. A module may replace theirs with it."""
    return Redis.from_url(redis_server.url, decode_responses=True)


@pytest.fixture
def producer(redis_server: RedisServer) -> Iterator[Any]:
    """Publishes to the test's Redis: `task.apply_async(…, producer=producer)`."""
    with app.connection_for_write(redis_server.url) as connection, app.amqp.Producer(connection) as producer:
        yield producer


@pytest.fixture
def eager() -> Iterator[None]:
    """Tasks run in this process when they are sent, without a broker."""
    app.conf.task_always_eager = True
    yield
    app.conf.task_always_eager = False
