"""The inequalities between the time constants of delivery, and the places outside Python that repeat one."""

import re
from pathlib import Path

import pytest
import yaml

import timing

ROOT = Path(__file__).parents[2]
EXAMPLE = dict(re.findall(r"^(\w+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
REDIS_CONF = (ROOT / "services/redis/redis.conf").read_text()

EXIT = 3  # s that a worker needs to leave after its soft shutdown (measured: under 2)


def seconds(text: str) -> int:
    """Seconds in compose's `20s`."""
    return int(text.removesuffix("s"))


def size(text: str) -> int:
    """Bytes in `256mb` (Redis) or `512m` (compose)."""
    number, unit = re.fullmatch(r"(\d+)([kmg])b?", text).groups()  # type: ignore[union-attr]
    return int(number) << {"k": 10, "m": 20, "g": 30}[unit]


def test_a_task_ends_before_its_message_is_given_to_another_worker() -> None:
    assert timing.SOFT_TIME_LIMIT < timing.HARD_TIME_LIMIT < timing.VISIBILITY_TIMEOUT


def test_a_delayed_task_becomes_due_before_its_message_is_given_to_another_worker() -> None:
    assert timing.MAX_DELAY < timing.VISIBILITY_TIMEOUT


def test_the_tasks_of_a_killed_worker_run_elsewhere_within_95_s() -> None:
    looked_for_within = timing.RESTORE_MUTEX_EXPIRE + timing.RESTORE_INTERVAL
    assert timing.VISIBILITY_TIMEOUT + looked_for_within < 95 <= timing.OUTBOX_BOUND


@pytest.mark.parametrize("worker", ["worker-high", "worker-low"])
def test_a_worker_has_left_before_compose_kills_it(worker: str) -> None:
    grace = seconds(COMPOSE["services"][worker]["stop_grace_period"])
    assert grace == timing.STOP_GRACE_PERIOD
    assert grace > timing.SOFT_SHUTDOWN + EXIT + timing.PUBLISH_CONNECT_TIMEOUT + timing.PUBLISH_SOCKET_TIMEOUT


def test_both_ends_notice_a_dead_connection_to_redis_alike() -> None:
    (keepalive,) = re.findall(r"^tcp-keepalive (\d+)$", REDIS_CONF, re.MULTILINE)
    assert int(keepalive) == timing.HEALTH_CHECK_INTERVAL


def test_a_publisher_gives_up_before_a_soft_time_limit_cuts_it_off() -> None:
    tries = 3  # task_publish_retry_policy: the first and max_retries
    assert tries * (timing.PUBLISH_CONNECT_TIMEOUT + timing.PUBLISH_SOCKET_TIMEOUT) < timing.SOFT_TIME_LIMIT


def test_results_outlive_whatever_still_adds_to_them() -> None:
    assert timing.RESULT_TTL > timing.VISIBILITY_TIMEOUT + timing.HARD_TIME_LIMIT + timing.MAX_DELAY


def test_heartbeats_are_renewed_well_before_they_look_stale() -> None:
    probe = COMPOSE["services"]["worker-low"]["healthcheck"]["test"][1]
    stale = int(re.search(r"'(\d+) seconds ago'", probe).group(1))  # type: ignore[union-attr]
    assert 3 * max(timing.HEARTBEAT_INTERVAL, timing.BEAT_MAX_LOOP) <= stale
    assert stale > timing.SOFT_SHUTDOWN + timing.HEARTBEAT_INTERVAL, "a soft shutdown stops the worker's loop"


def test_redis_has_room_to_fork_while_it_rewrites_its_aof() -> None:
    assert size(EXAMPLE["REDIS_MEMORY_LIMIT"]) >= 2 * size(EXAMPLE["REDIS_MAXMEMORY"])
