"""Whether the atomic transport can be used here. If not, the stock one takes its place: `Durable.fall_back`."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import kombu
import redis
from celery.concurrency import get_implementation
from kombu.utils.compat import detect_environment
from kombu.utils.uuid import uuid
from redis import RedisError

from celery_durable.atomic.scripts import FETCH, LAPSED
from celery_durable.clients import connect

# Minor versions that were tested: it depends on internals of both.
TESTED_KOMBU = ("5.7",)
TESTED_REDIS_PY = ("7.4", "8.0", "8.1")
POOLS = ("prefork", "threads", "solo")


def missing_for_app(url: str, options: dict[str, Any]) -> list[str]:
    """What an app lacks, its publishers included. `url`: of the broker; `options`: broker_transport_options."""
    return [*_versions(), *_settings(url, options)]


def missing_for_worker(pool: Any, durable: Any) -> list[str]:
    """What only a worker lacks: publishers need neither threads nor anything special of Redis. `pool`: its class. A
    Redis that does not answer is taken for one that has everything: it may start later."""
    return [*_pool(pool), *_server(durable)]


def _versions() -> Iterator[str]:
    for name, version, tested in (
        ("kombu", kombu.__version__, TESTED_KOMBU),
        ("redis-py", redis.__version__, TESTED_REDIS_PY),
    ):
        if ".".join(version.split(".")[:2]) not in tested:
            yield f"{name} {version} was not tested with it; {' or '.join(tested)} was"


def _settings(url: str, options: dict[str, Any]) -> Iterator[str]:
    if (scheme := urlsplit(url).scheme) not in ("redis", "rediss"):
        yield f"broker_url is {scheme}://; it needs redis:// or rediss://"
    if (protocol := options.get("protocol") or 3) not in (3, "3"):
        yield f"broker_transport_options.protocol is {protocol}; it needs RESP3"


def _pool(pool: Any) -> Iterator[str]:
    if not issubclass(pool, tuple(map(get_implementation, POOLS))):
        yield f"the pool is {pool.__module__}; it needs one of {', '.join(POOLS)}"
    elif (patched := detect_environment()) != "default":
        yield f"{patched} has replaced Python's sockets and threads"


def _server(durable: Any) -> Iterator[str]:
    """Calls the scripts as workers do, with keys of their own: the version and the access list decide whether it
    works."""
    prefix = durable.broker_key(f"probe:{uuid()}:")
    books, names = ("unacked", "unacked_index"), ("watcher", "waiting", "wake:a", "list")
    keys = [f"{prefix}{name}" for name in (*books, *names)]
    with connect(durable.broker_url, durable.config, protocol=3) as client:
        try:
            version = client.info("server")["redis_version"]
            if int(version.partition(".")[0]) < 7:
                yield f"the broker is Redis {version}; it needs Redis 7 or Valkey"
                return
            client.execute_command("CLIENT", "TRACKING", "ON", "NOLOOP")
            for caller, waits in (("a", 1), ("b", 1), ("a", 0)):
                FETCH(client, keys, [1, "", 0, 1, 1, caller, f"{prefix}wake:", waits, 0, '""'])
            LAPSED(client, [keys[1], f"{prefix}leases"], [1, 1, "", 1, 1, 1])
            client.delete(f"{prefix}leases")
        except (redis.ConnectionError, redis.TimeoutError):
            return
        except RedisError as error:
            rights = "+client|tracking +getex +zpopmax"
            yield f"the broker refuses a command that it needs ({error}); an access list needs {rights} in addition"
