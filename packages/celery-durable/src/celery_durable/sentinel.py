"""A broker behind Redis Sentinel, `sentinel://…`: with the stock transport, since the atomic one needs a single Redis.

A failover loses what was not replicated yet. Of tasks with `outbox=True` the outbox publishes again what was lost.
"""

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from kombu.transport import redis
from redis import Redis
from redis.sentinel import Sentinel

from celery_durable import transport
from celery_durable.clients import credentials, time_outs
from celery_durable.config import Config

PORT = 26379


class Channel(transport.Channel, redis.SentinelChannel):
    """The library's, whose connections ask Sentinel for the master."""


class Transport(transport.Transport, redis.SentinelTransport):
    """The library's, for sentinel://."""

    Channel = Channel


def connect(url: str, transport_options: Mapping[str, Any], config: Config, **options: Any) -> Redis:
    """A client of the master. `url`: of one or several Sentinels, separated by ";"; `transport_options`: Celery's
    broker_transport_options, with `master_name`; `options`: redis-py's."""
    first, *_ = nodes = [urlsplit(each) for each in url.split(";")]
    username = unquote(first.username) if first.username else None
    login = {"username": username, "password": unquote(first.password) if first.password else None}
    provider = credentials(config, username, first.password)
    manager = Sentinel(
        [(node.hostname, node.port or PORT) for node in nodes],
        min_other_sentinels=transport_options.get("min_other_sentinels", 0),
        sentinel_kwargs=transport_options.get("sentinel_kwargs") or time_outs(config),
    )
    master: Redis = manager.master_for(
        transport_options["master_name"],
        db=int(first.path.strip("/") or 0),
        **({"credential_provider": provider} if provider else login),
        **{"decode_responses": True, **time_outs(config), **options},
    )
    return master
