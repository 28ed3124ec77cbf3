"""`Config`: every field is explained, every wrong value refused by name."""

import dataclasses
import inspect
import math
import re
from pathlib import Path
from typing import Any

import pytest

from celery_durable import Config, ConfigError

from .project import SHORT, run_python

STORE = "redis://127.0.0.1:1/0"
FIELDS = [field.name for field in dataclasses.fields(Config)]
PRIORITY = "reconcile_priority"  # 0 is one
NUMBERS = [field.name for field in dataclasses.fields(Config) if field.type in (int, float) and field.name != PRIORITY]
COUNTS = [field.name for field in dataclasses.fields(Config) if field.type is int and field.name != PRIORITY]
SWITCHES = [field.name for field in dataclasses.fields(Config) if field.type is bool]
FILES = ["password_file", "heartbeat_file"]


def refused(**changes: Any) -> str:
    """The error of Config for a change of its defaults."""
    with pytest.raises(ConfigError) as error:
        Config(**{"store": STORE, **changes})
    return str(error.value)


@pytest.mark.parametrize("name", FIELDS)
def test_each_field_is_explained_above_it(name: str) -> None:
    assert re.search(rf"\n    #: [^\n]+(\n    #: [^\n]+)*\n    {name}: ", inspect.getsource(Config))


def test_the_defaults_and_the_short_times_of_these_tests_are_not_refused() -> None:
    Config(store=STORE)
    Config(store="rediss://user@redis:6380/1", **SHORT)


def test_with_leases_a_delay_may_be_longer_than_the_visibility_timeout() -> None:
    Config(store=STORE, max_delay=7200)
    assert "max_delay: 7200; it must be less than visibility_timeout" in refused(transport="stock", max_delay=7200)


# --- Types ---


@pytest.mark.parametrize("value", ["redis", None, ""])
def test_a_transport_is_one_of_two(value: object) -> None:
    assert f"transport: {value!r}; it must be one of stock, atomic" in refused(transport=value)


@pytest.mark.parametrize("value", [0, -1, "60", None, True, math.nan, math.inf])
@pytest.mark.parametrize("name", NUMBERS)
def test_what_is_no_number_above_zero_is_refused(name: str, value: object) -> None:
    assert f"{name}: {value!r}; it must be a " in refused(**{name: value})


@pytest.mark.parametrize("name", COUNTS)
def test_a_count_is_whole(name: str) -> None:
    assert f"{name}: 1.5; it must be a whole number, 1 or above" in refused(**{name: 1.5})


@pytest.mark.parametrize("value", [-1, 1.5, "1", None, True, False])
def test_a_priority_is_whole_and_not_below_zero(value: object) -> None:
    assert f"reconcile_priority: {value!r}; it must be a whole number, 0 or above" in refused(reconcile_priority=value)
    Config(store=STORE, reconcile_priority=0)


@pytest.mark.parametrize("value", [1, b"high", True])
def test_a_queue_is_a_name(value: object) -> None:
    assert f"reconcile_queue: {value!r}; it must be the name of a queue, or None" in refused(reconcile_queue=value)


@pytest.mark.parametrize("value", [None, 1, "yes"])
@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_is_on_or_off(name: str, value: object) -> None:
    assert f"{name}: {value!r}; it must be True or False" in refused(**{name: value})


@pytest.mark.parametrize("value", ["/run/file", b"/run/file", 3])
@pytest.mark.parametrize("name", FILES)
def test_a_file_is_a_path(name: str, value: object) -> None:
    assert f"{name}: {value!r}; it must be a pathlib.Path, or None" in refused(**{name: value})


@pytest.mark.parametrize("value", [0, -1, "512m", 1.5, True])
def test_a_memory_limit_is_a_number_of_bytes(value: object) -> None:
    assert f"redis_memory_limit: {value!r}; it must be a whole number, 1 or above, or None" in refused(
        redis_memory_limit=value
    )


@pytest.mark.parametrize("value", [0, -1, 65536, "9540", 1.5, True])
def test_a_port_is_a_port(value: object) -> None:
    assert f"metrics_port: {value!r}; it must be a port (1 to 65535), or None" in refused(metrics_port=value)


@pytest.mark.parametrize(
    "value", ["", "redis", "amqp://redis", "sentinel://redis", "http://redis", 7, None, "rediss+x://"]
)
def test_the_store_is_the_address_of_a_redis(value: object) -> None:
    assert "store: must be the address of a Redis" in refused(store=value)


def test_the_password_of_a_wrong_store_is_not_shown() -> None:
    assert "hidden" not in refused(store="amqp://user:hidden@redis")


@pytest.mark.parametrize("value", ["", None, 7])
def test_the_prefix_is_a_text(value: object) -> None:
    assert f"key_prefix: {value!r}; it must be a string that is not empty" in refused(key_prefix=value)


def test_nothing_can_be_misspelt_or_given_without_its_name() -> None:
    with pytest.raises(TypeError, match="visibilty_timeout"):
        Config(store=STORE, visibilty_timeout=60)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Config(STORE)  # type: ignore[call-arg]


def test_it_does_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config(store=STORE).max_delay = 10  # type: ignore[misc]


# --- Inequalities ---


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"soft_time_limit": 3600}, "soft_time_limit: 3600; it must be less than time_limit (3600): the soft limit"),
        (
            {"transport": "stock", "max_delay": 90},
            "max_delay: 90; it must be less than visibility_timeout (90): or a stock worker runs",
        ),
        ({"renew_interval": 30}, "renew_interval: 30; it must be less than visibility_timeout / 3 (30): two renewals"),
        ({"min_retry_delay": 60}, "min_retry_delay: 60; it must be less than max_delay (60): or no retry can be"),
        ({"default_retry_delay": 60}, "default_retry_delay: 60; it must be less than max_delay (60): or a retry is"),
        ({"unknown_task_delay": 90}, "unknown_task_delay: 90; it must be less than visibility_timeout (90): or it is"),
        ({"recheck_after": 95}, "recheck_after: 95; it must be less than republish_after (95): it is the shorter"),
        ({"heartbeat_interval": 60}, "heartbeat_interval: 60; it must be less than hung_after (60): the loop must"),
        (
            {"soft_shutdown": 12},
            "soft_shutdown: 12; it must be less than stop_grace_period, less 3 s and the publish time-outs (12): or "
            "the worker is killed during it",
        ),
        ({"result_memory_share": 1.1}, "result_memory_share: 1.1; it must be at most 1: it is a share of maxmemory"),
        (
            {"max_message_bytes": 2000, "max_dead_letter_bytes": 1999},
            "max_message_bytes: 2000; it must be at most max_dead_letter_bytes (1999): or a dead letter is not kept",
        ),
        (
            {"republish_after": 94},
            "republish_after: 94; it must be more than visibility_timeout + restore_mutex_expire + restore_interval "
            "(94): or a killed worker's tasks are published again although they are redelivered",
        ),
        (
            {"soft_time_limit": 15},
            "soft_time_limit: 15; it must be more than 3 times (publish_connect_timeout + publish_socket_timeout) "
            "(15): or it interrupts a publish",
        ),
        ({"hung_after": 6}, "hung_after: 6; it must be more than soft_shutdown (6): a soft shutdown stops the event"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_broken_inequality_is_named(changes: dict[str, Any], said: str) -> None:
    assert f"\n  {said}" in refused(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"result_memory_share": 1},
        {"max_message_bytes": 2000, "max_dead_letter_bytes": 2000},
        {"republish_after": 94.1},
        {"soft_shutdown": 11.9},
        {"soft_time_limit": 15.1},
    ],
    ids=lambda value: "-".join(value),
)
def test_the_edge_of_an_inequality_is_allowed(changes: dict[str, Any]) -> None:
    Config(store=STORE, **changes)


def test_all_problems_are_reported_at_once() -> None:
    assert len(refused(time_limit=0, outbox="yes", key_prefix="").splitlines()) == 1 + 3
    assert len(refused(min_retry_delay=100, recheck_after=100, hung_after=3).splitlines()) == 1 + 3


# --- Importing ---

LOOK = """
import os, sys
import celery.app.amqp, celery.app.control, celery.app.task, celery.backends.redis, celery.beat, celery.bin.worker
import celery.concurrency.solo, celery.worker.consumer, kombu.transport.redis, redis, zoneinfo

seen = []

class Environment(dict):
    def __getitem__(self, name):
        seen.append(f"read {name}")
        return super().__getitem__(name)
    get = __getitem__
    __contains__ = __getitem__

def audit(event, args):
    if event == "open" and not str(args[0]).endswith((".py", ".pyc", ".so", ".lua")):
        seen.append(f"open {args[0]}")
    elif event.startswith(("socket.", "subprocess.")):
        seen.append(event)

os.environ = Environment(os.environ)
sys.addaudithook(audit)
import celery_durable
from celery_durable import (
    backend, checks, consumer, control, dlq, publishing, requeue, scheduler, transport, watchdog, worker
)
print(seen)
"""


def test_importing_it_reads_no_environment_and_no_file_but_its_own_and_connects_to_nothing() -> None:
    done = run_python(LOOK)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_that_test_detects_reads_of_the_environment() -> None:
    done = run_python(LOOK.replace("import celery_durable\n", 'import celery_durable; os.environ.get("HOME")\n', 1))
    assert done.stdout == "['read HOME']\n"


def test_it_is_typed() -> None:
    import celery_durable

    assert (Path(celery_durable.__file__).parent / "py.typed").exists()
