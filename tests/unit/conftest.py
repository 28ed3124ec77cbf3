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
    """Its client, as the services have one: replies are text. A module may put it in the place of theirs."""
    return Redis.from_url(redis_server.url, decode_responses=True)


@pytest.fixture
def producer(redis_server: RedisServer) -> Iterator[Any]:
    """Publishes to it: `task.apply_async(…, producer=producer)`."""
    with app.connection_for_write(redis_server.url) as connection, app.amqp.Producer(connection) as producer:
        yield producer


@pytest.fixture
def eager() -> Iterator[None]:
    """Tasks run in this process when they are sent; no broker is asked."""
    app.conf.task_always_eager = True
    yield
    app.conf.task_always_eager = False
