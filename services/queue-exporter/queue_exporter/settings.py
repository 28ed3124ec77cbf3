"""Settings, from the environment only. README.md has the table."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

# kombu's own defaults (kombu.transport.redis: Channel.priority_steps, Channel.sep).
KOMBU_PRIORITY_STEPS = "0,3,6,9"
KOMBU_PRIORITY_SEPARATOR = "\x06\x16"
CELERY_DURABLE_PREFIX = "celery-durable:"  # celery_durable.Config.key_prefix


class SettingError(Exception):
    """An invalid setting; the text names the setting, what is wrong and what to do."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name}: {problem}")


@dataclass(frozen=True)
class Settings:
    """What to read, from which Redis, and the port to serve on."""

    broker_url: str  # without user and password
    username: str | None
    password: str | None = field(repr=False)
    queues: tuple[str, ...]
    priority_steps: tuple[int, ...]
    priority_separator: str
    global_keyprefix: str
    key_prefix: str
    port: int

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Settings:
        """Read and check every setting. Raises SettingError for the first invalid one."""
        broker_url, url_username = _broker_url(environ.get("BROKER_URL", ""))
        return cls(
            broker_url=broker_url,
            username=environ.get("REDIS_USERNAME") or url_username,
            password=_password(environ.get("REDIS_PASSWORD_FILE", "")),
            queues=_queues(environ.get("QUEUES", "")),
            priority_steps=_priority_steps(environ.get("PRIORITY_STEPS") or KOMBU_PRIORITY_STEPS),
            priority_separator=environ.get("PRIORITY_SEPARATOR") or KOMBU_PRIORITY_SEPARATOR,
            global_keyprefix=environ.get("GLOBAL_KEYPREFIX", ""),
            key_prefix=environ.get("KEY_PREFIX") or CELERY_DURABLE_PREFIX,
            port=_port(environ.get("PORT") or "9541"),
        )

    def list_key(self, queue: str, step: int) -> str:
        """The Redis list of a queue's priority step, as kombu's Channel._q_for_pri names it: step 0 has no suffix."""
        suffix = f"{self.priority_separator}{step}" if step else ""
        return f"{self.global_keyprefix}{queue}{suffix}"

    def delayed_key(self, queue: str) -> str:
        """The sorted set of a queue's delayed messages: message → due in epoch s (celery_durable.atomic)."""
        return f"{self.global_keyprefix}{self.key_prefix}delayed:{queue}"

    @property
    def dead_letters_key(self) -> str:
        """The stream of dead letters (celery_durable.dead_letters)."""
        return f"{self.global_keyprefix}{self.key_prefix}dead-letters"

    @property
    def registry_key(self) -> str:
        """The hash of worker registrations: node name → JSON with `heartbeat` in epoch s (celery_durable.worker)."""
        return f"{self.global_keyprefix}{self.key_prefix}workers"

    @property
    def unacked_key(self) -> str:
        """The hash in which kombu stores unacknowledged messages (Channel.unacked_key)."""
        return f"{self.global_keyprefix}unacked"


def _broker_url(url: str) -> tuple[str, str | None]:
    """The URL without its user, and the user."""
    if not url:
        raise SettingError("BROKER_URL", "not set; give the broker, for example redis://exporter@redis:6379/0")
    try:
        parts = urlsplit(url)
        password, host, _ = parts.password, parts.hostname, parts.port
    except ValueError as error:
        raise SettingError("BROKER_URL", f"not a URL ({error}); for example redis://exporter@redis:6379/0") from None
    if parts.scheme not in ("redis", "rediss"):
        raise SettingError("BROKER_URL", f"scheme {parts.scheme!r} is not supported; use redis:// or rediss:// (TLS)")
    if password is not None:  # not shown: it must not be in the log
        raise SettingError("BROKER_URL", "holds a password; put it in a file and name the file in REDIS_PASSWORD_FILE")
    if not host:
        raise SettingError("BROKER_URL", "names no host; for example redis://exporter@redis:6379/0")
    if not re.fullmatch(r"(/\d*)?", parts.path):  # redis-py would silently use database 0
        raise SettingError("BROKER_URL", f"database {parts.path[1:]!r} is not a number; for example …:6379/0")
    address = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=address).geturl(), unquote(parts.username) if parts.username else None


def _password(path: str) -> str | None:
    if not path:
        return None
    try:
        password = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise SettingError("REDIS_PASSWORD_FILE", f"cannot read {path}: {reason}") from None
    if not password:
        raise SettingError("REDIS_PASSWORD_FILE", f"{path} is empty; put the password of BROKER_URL's user in it")
    return password


def _queues(text: str) -> tuple[str, ...]:
    queues = tuple(name.strip() for name in text.split(",") if name.strip())
    if not queues:
        raise SettingError("QUEUES", "not set; name the queues to monitor, separated by commas, for example high,low")
    if len(set(queues)) < len(queues):
        raise SettingError("QUEUES", f"names a queue twice: {text}")
    return queues


def _priority_steps(text: str) -> tuple[int, ...]:
    try:
        steps = tuple(sorted(int(step) for step in text.split(",")))
    except ValueError:
        raise SettingError("PRIORITY_STEPS", f"{text!r} is not a list of numbers such as 0,3,6,9") from None
    if steps[0] < 0 or len(set(steps)) < len(steps):
        raise SettingError("PRIORITY_STEPS", f"{text!r} has a negative or repeated step")
    return steps


def _port(text: str) -> int:
    if not (text.isdecimal() and 0 < int(text) < 65536):
        raise SettingError("PORT", f"{text!r} is not a TCP port (1 to 65535)")
    return int(text)
