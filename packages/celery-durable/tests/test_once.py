"""An effect and its done marker are one transaction: the effect is applied once or not at all."""

import multiprocessing
from collections.abc import Callable
from functools import partial
from multiprocessing.synchronize import Barrier
from typing import Any

import pytest
import redis
from redis import Redis
from redis.client import Pipeline
from redis.exceptions import ExecAbortError, OutOfMemoryError

from celery_durable import EffectFailedError, Once, atomically, once

from .conftest import NewApp
from .redis_server import RedisServer


def add_one(pipe: Pipeline) -> str:
    pipe.incr("effect")
    return "first"


def test_a_second_run_changes_nothing_and_gets_the_first_result(client: Any) -> None:
    assert once(client, "once:a", add_one) == Once("first", first=True)
    assert once(client, "once:a", lambda pipe: pipe.incr("effect")) == Once("first", first=False)
    assert client.get("effect") == "1"


@pytest.mark.parametrize("result", [{1: (2, 3)}, (1, 2), [1.5, None, True], "text", None, {}, 0])
def test_both_runs_return_the_same(client: Any, result: object) -> None:
    first, second = (once(client, "once:a", lambda pipe: result) for _ in range(2))
    assert (first.first, second.first) == (True, False)
    assert first.result == second.result
    assert type(first.result) is type(second.result)


def test_a_client_that_decodes_nothing_is_accepted(redis_server: RedisServer) -> None:
    for is_first in (True, False):
        assert once(redis_server.client, "once:a", add_one) == Once("first", first=is_first)


def test_the_marker_stays_as_long_as_asked(client: Any) -> None:
    once(client, "once:a", add_one)
    once(client, "once:b", add_one, ttl=60)
    once(client, "once:c", add_one, ttl=1.5)
    assert client.ttl("once:a") == -1
    assert 0 < client.ttl("once:b") <= 60
    assert 1000 < client.pttl("once:c") <= 1500


@pytest.mark.parametrize("ttl", [0, -1, 0.0])
def test_a_marker_that_would_expire_at_once_is_refused(client: Any, ttl: float) -> None:
    with pytest.raises(ValueError, match=r"ttl: .*; it must be above 0, or None to keep the marker"):
        once(client, "once:a", add_one, ttl=ttl)
    assert client.keys() == []


def test_the_shortest_time_of_a_marker_is_one_second(client: Any) -> None:
    assert once(client, "once:a", add_one, ttl=0.0001).first
    assert client.get("effect") == "1"


def test_an_effect_that_raises_leaves_nothing(client: Any) -> None:
    def broken(pipe: Pipeline) -> None:
        pipe.incr("effect")
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        once(client, "once:a", broken)
    assert client.keys() == []
    assert once(client, "once:a", add_one).first


@pytest.mark.parametrize("result", [{1, 2}, object(), b"bytes"])
def test_a_result_that_is_not_json_leaves_nothing(client: Any, result: object) -> None:
    def effect(pipe: Pipeline) -> object:
        pipe.incr("effect")
        return result

    with pytest.raises(TypeError, match="JSON"):
        once(client, "once:a", effect)
    assert client.keys() == []


def test_a_command_that_redis_refuses_before_the_step_leaves_nothing(client: Any) -> None:
    def unknown(pipe: Pipeline) -> None:
        pipe.incr("effect")
        pipe.execute_command("NO.SUCH.COMMAND")

    with pytest.raises(redis.ResponseError, match="unknown command") as error:
        once(client, "once:a", unknown)
    assert not isinstance(error.value, EffectFailedError)
    assert client.keys() == []


def wrong_type(pipe: Pipeline) -> None:
    pipe.incr("effect")
    pipe.lpush("text", "x")
    pipe.incr("effect")


def test_a_command_that_fails_within_the_step_raises_each_time_and_is_not_applied_again(client: Any) -> None:
    """Redis has applied the other commands, so a second run would apply them twice."""
    client.set("text", "is no list")
    for _ in range(3):
        with pytest.raises(EffectFailedError, match=r"marker once:a: Redis refused .*WRONGTYPE.*delete the marker"):
            once(client, "once:a", wrong_type, ttl=60)
    assert client.get("effect") == "2"
    assert 0 < client.ttl("once:a") <= 60
    client.delete("text", "once:a", "effect")
    assert once(client, "once:a", wrong_type).first


def test_a_read_that_fails_leaves_nothing(client: Any) -> None:
    client.lpush("once:a", "is no text")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE") as error:
        once(client, "once:a", add_one)
    assert not isinstance(error.value, EffectFailedError)
    assert client.keys() == ["once:a"]


def test_a_key_that_is_no_marker_is_named(client: Any) -> None:
    client.set("once:a", "}{")
    with pytest.raises(ValueError, match=r"marker once:a: the key does not hold a result, '}\{'"):
        once(client, "once:a", add_one)


def test_a_full_redis_refuses_effect_and_marker_alike(client: Any) -> None:
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises((OutOfMemoryError, ExecAbortError)):
            once(client, "once:a", add_one)
    finally:
        client.config_set("maxmemory", 0)
    assert client.keys() == []


def test_another_run_that_finishes_in_between_wins(client: Any) -> None:
    def changed_in_between(pipe: Pipeline) -> str:
        other = Redis(connection_pool=client.connection_pool)
        assert not client.exists("once:a"), "started again without reading the marker"
        assert once(other, "once:a", add_one).first
        pipe.incr("effect")
        return "second"

    assert once(client, "once:a", changed_in_between) == Once("first", first=False)
    assert client.get("effect") == "1"


def test_a_connection_that_breaks_in_between_does_not_apply_it_twice(client: Any, redis_server: RedisServer) -> None:
    """Redis drops the WATCH with the connection; the step starts over and reads whether the effect is there."""
    runs = 0

    def cut_off(pipe: Pipeline) -> str:
        nonlocal runs
        runs += 1
        if runs == 1:
            redis_server.client.client_kill_filter(_type="normal", skipme=True)
        return add_one(pipe)

    assert once(client, "once:a", cut_off) == Once("first", first=True)
    assert runs == 2
    assert client.get("effect") == "1"


def test_a_step_reads_and_writes_in_one_transaction(client: Any) -> None:
    def take(pipe: Pipeline) -> int:
        left = int(pipe.get("stock") or 0)
        pipe.multi()
        if left:
            pipe.decr("stock")
        return left

    client.set("stock", 2)
    assert [atomically(client, take, "stock") for _ in range(3)] == [2, 1, 0]


def test_the_apps_own_is_in_its_store(new_app: NewApp, client: Any) -> None:
    durable = new_app().durable
    assert durable.once("once:a", add_one) == Once("first", first=True)
    assert durable.once("once:a", add_one, ttl=5).first is False
    assert client.get("effect") == "1"


def test_without_done_markers_each_run_is_applied(new_app: NewApp, client: Any) -> None:
    durable = new_app(done_markers=False).durable
    assert [durable.once("once:a", add_one).first for _ in range(2)] == [True, True]
    assert client.get("effect") == "2"


def add_one_to(name: str, pipe: Pipeline) -> str:
    pipe.incr(f"effect:{name}")
    return name


def apply_all(url: str, names: list[str], ready: Barrier) -> None:
    client = Redis.from_url(url, decode_responses=True)
    ready.wait(timeout=60)
    for name in names:
        effect: Callable[[Pipeline], str] = partial(add_one_to, name)
        once(client, f"once:{name}", effect)


def test_processes_that_apply_the_same_effects_at_the_same_time(client: Any, redis_server: RedisServer) -> None:
    spawn = multiprocessing.get_context("spawn")
    ready, names = spawn.Barrier(3), [str(number) for number in range(200)]
    processes = [spawn.Process(target=apply_all, args=(redis_server.url, names, ready)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert {client.get(f"effect:{name}") for name in names} == {"1"}
