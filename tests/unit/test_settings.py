"""Settings of the services, which must agree with compose.yaml, Redis' configuration and beat's schedule."""

import re
import runpy  # demo
from pathlib import Path
from typing import Any

import pytest
import yaml
from redis import Redis  # demo

from beat_schedule import ENTRIES
from celery_durable import Durable  # demo
from queues import QUEUES
from settings import DELIVERY, RESULT_TTL, Settings, load_settings

ROOT = Path(__file__).parents[2]
EXAMPLE = dict(re.findall(r"^(\w+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
REDIS_CONF = (ROOT / "services/redis/redis.conf").read_text()


def seconds(text: str) -> int:
    """Seconds in compose's `20s`."""
    return int(text.removesuffix("s"))


def size(text: str) -> int:
    """Bytes in `256mb` (Redis) or `512m` (compose)."""
    number, unit = re.fullmatch(r"(\d+)([kmg])b?", text).groups()  # type: ignore[union-attr]
    return int(number) << {"k": 10, "m": 20, "g": 30}[unit]


@pytest.mark.parametrize("queue", QUEUES, ids=lambda queue: queue.name)
def test_compose_gives_a_worker_the_grace_that_its_delivery_counts_on(queue: Any) -> None:
    grace = seconds(COMPOSE["services"][f"worker-{queue.name}"]["stop_grace_period"])
    assert grace == DELIVERY.stop_grace_period


def test_both_ends_detect_a_dead_connection_to_redis_equally_soon() -> None:
    (keepalive,) = re.findall(r"^tcp-keepalive (\d+)$", REDIS_CONF, re.MULTILINE)
    assert int(keepalive) == DELIVERY.health_check_interval


def test_results_are_kept_longer_than_any_task_may_add_to_them() -> None:
    assert DELIVERY.time_limit + DELIVERY.visibility_timeout + DELIVERY.max_delay < RESULT_TTL


def test_heartbeats_are_renewed_well_before_they_count_as_stale() -> None:
    probe = COMPOSE["services"]["worker-low"]["healthcheck"]["test"][1]
    stale = int(re.search(r"'(\d+) seconds ago'", probe).group(1))  # type: ignore[union-attr]
    assert 3 * max(DELIVERY.heartbeat_interval, DELIVERY.beat_max_loop) <= stale
    assert stale > DELIVERY.soft_shutdown + DELIVERY.heartbeat_interval, "a soft shutdown stops the worker's loop"


def test_redis_has_room_to_fork_while_it_rewrites_its_aof() -> None:
    assert size(EXAMPLE["REDIS_MEMORY_LIMIT"]) >= 2 * size(EXAMPLE["REDIS_MAXMEMORY"])


@pytest.mark.parametrize("name", ENTRIES)
def test_entries_expire_before_they_are_due_again(name: str) -> None:
    entry = ENTRIES[name]
    expires = entry.get("options", {}).get("expires")
    assert expires, "give it options={'expires': seconds}, or its messages accumulate while no worker runs"
    interval = getattr(entry["schedule"], "run_every", None)  # a crontab has none
    assert interval is None or expires <= interval.total_seconds()


@pytest.mark.parametrize(
    ("url", "given"),
    [
        ("redis://redis:6379/0", "redis://celery@redis:6379/0"),
        ("redis://me:mine@redis:6379/0", "redis://me:mine@redis:6379/0"),
        ("rediss://redis:6379/0", "rediss://celery@redis:6379/0?ssl_cert_reqs=required"),
        ("rediss://redis:6379/0?ssl_cert_reqs=none", "rediss://celery@redis:6379/0?ssl_cert_reqs=none"),
    ],
)
def test_an_address_gets_the_user_and_never_the_password(url: str, given: str) -> None:
    assert Settings().with_user(url) == given


@pytest.mark.parametrize(("text", "bytes_"), [("512m", 512 << 20), ("1G", 1 << 30), ("1024", 1024), ("", None)])
def test_the_memory_limit_of_redis(text: str, bytes_: int | None) -> None:
    assert Settings(redis_memory_limit=text).memory_limit == bytes_


def test_a_wrong_setting_is_named_with_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METRICS_PORT", "abc")
    monkeypatch.setenv("REDIS_BROKER_URL", "amqp://rabbit")
    with pytest.raises(SystemExit) as raised:
        load_settings()
    assert "METRICS_PORT: " in str(raised.value)
    assert "it is 'abc'" in str(raised.value)
    assert "REDIS_BROKER_URL: " in str(raised.value)


# >>> demo
def test_the_example_of_the_page(client: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/delivery.md, In your own tasks: called twice, its effect is applied once."""
    page = (ROOT / "docs/delivery.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (tmp_path / "example.py").write_text(block)
    monkeypatch.setattr(Durable, "store", client)
    credit = runpy.run_path(str(tmp_path / "example.py"))["credit"]
    assert credit.outbox
    for _ in range(2):
        credit("payment-1", "A", 500)
    assert client.get("balance:A") == "500"


# <<< demo
