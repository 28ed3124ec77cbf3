"""Redis clients, created from `Config`: one per URL and process."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from redis import AuthenticationError, CredentialProvider, Redis
from redis.connection import parse_url

from celery_durable.config import Config


class PasswordFile(CredentialProvider):
    """Reads the password at each connect: after a change of the file no restart is needed."""

    def __init__(self, path: Path, username: str | None) -> None:
        self._path, self._username = path, username

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """Raises redis' AuthenticationError, a ConnectionError, when the file cannot be read."""
        try:
            password = self._path.read_text().strip()
        except OSError as error:
            raise AuthenticationError(f"password_file: cannot read {self._path}: {error.strerror}") from error
        return (self._username, password) if self._username else (password,)


def credentials(config: Config, username: str | None, password: object) -> PasswordFile | None:
    """The password file for a connection, if Config names one and the URL has no password."""
    return PasswordFile(config.password_file, username) if config.password_file and not password else None


def database(url: str) -> tuple[Any, ...]:
    """What a URL names, as its user: equal for two URLs of one database."""
    parts, options = urlsplit(url), parse_url(url)
    server = parts.scheme, options.get("path"), options.get("host"), options.get("port", 6379)
    return *server, int(options.get("db") or 0), options.get("username")


_forks = 0


def forks() -> int:
    """How many forks led from the import to this process. os.getpid() would take a fiftieth of the time of a publish.
    Only Python's own forks are counted; redis-py's connection pools check the process id themselves."""
    return _forks


def _count_fork() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_count_fork)


class Clients:
    """Clients of one app."""

    def __init__(self) -> None:
        self._forks = 0
        self._clients: dict[str, Any] = {}

    def get(self, url: str, make: Callable[[], Any]) -> Any:
        """This process's client of the Redis at `url`, which `make` creates. It connects at first use.

        Typed Any because redis-py types each reply bytes | str, whatever decode_responses is.
        """
        if self._forks != forks():  # two processes would read from one socket
            self._clients, self._forks = {}, forks()
        if url not in self._clients:
            self._clients[url] = make()
        return self._clients[url]


def time_outs(config: Config) -> dict[str, float]:
    """Options of a connection: without them a frozen Redis blocks its caller."""
    return {
        "socket_connect_timeout": config.publish_connect_timeout,
        "socket_timeout": config.publish_socket_timeout,
        "health_check_interval": config.health_check_interval,
    }


def connect(url: str, config: Config, make: Callable[..., Any] = Redis.from_url, **options: Any) -> Any:
    """A client, or what `make` creates from a URL and redis-py's options."""
    parts = urlsplit(url)
    username = unquote(parts.username) if parts.username else None
    if provider := credentials(config, username, parts.password):
        options["credential_provider"] = provider
        address = parts.netloc.rpartition("@")[2]
        url = parts._replace(netloc=address).geturl()  # redis-py takes a user or a provider, not both
    return make(
        url,
        **{"decode_responses": True, **time_outs(config), **options},
    )
