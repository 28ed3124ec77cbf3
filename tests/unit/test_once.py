"""An effect and its done marker, in one step: whatever happens, the effect is there once or not at all."""

import multiprocessing
from functools import partial
from multiprocessing.synchronize import Barrier

import pytest
import redis
from redis import Redis
from redis.client import Pipeline
from redis.exceptions import OutOfMemoryError

from delivery.once import Once, once
from unit.redis_server import RedisServer


def add_one(pipe: Pipeline) -> str:
    pipe.incr("effect")
    return "first"


def test_a_second_run_changes_nothing_and_gets_the_first_result(client: Redis) -> None:
    assert once(client, "once:a", add_one) == Once("first", first=True)
    assert once(client, "once:a", lambda pipe: pipe.incr("effect")) == Once("first", first=False)
    assert client.get("effect") == "1"


def test_the_marker_stays_as_long_as_asked(client: Redis) -> None:
    once(client, "once:a", add_one)
    once(client, "once:b", add_one, ttl=60)
    assert client.ttl("once:a") == -1
    assert 0 < client.ttl("once:b") <= 60


def test_an_effect_that_raises_leaves_nothing(client: Redis) -> None:
    def broken(pipe: Pipeline) -> None:
        pipe.incr("effect")
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        once(client, "once:a", broken)
    assert client.keys() == []
    assert once(client, "once:a", add_one).first


def test_a_full_redis_refuses_effect_and_marker_alike(client: Redis) -> None:
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises((OutOfMemoryError, redis.exceptions.ExecAbortError)):
            once(client, "once:a", add_one)
    finally:
        client.config_set("maxmemory", 0)
    assert client.keys() == []


def test_another_run_that_finishes_in_between_wins(client: Redis) -> None:
    def overtaken(pipe: Pipeline) -> str:
        other = Redis(connection_pool=client.connection_pool)
        assert not client.exists("once:a"), "started over without a look at the marker"
        assert once(other, "once:a", add_one).first
        pipe.incr("effect")
        return "second"

    assert once(client, "once:a", overtaken) == Once("first", first=False)
    assert client.get("effect") == "1"


def test_a_connection_that_breaks_in_between_does_not_apply_it_twice(client: Redis, redis_server: RedisServer) -> None:
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


def add_one_to(name: str, pipe: Pipeline) -> str:
    pipe.incr(f"effect:{name}")
    return name


def apply_all(url: str, names: list[str], ready: Barrier) -> None:
    client = Redis.from_url(url, decode_responses=True)
    ready.wait(timeout=30)
    for name in names:
        once(client, f"once:{name}", partial(add_one_to, name))


def test_processes_that_apply_the_same_effects_at_the_same_time(client: Redis, redis_server: RedisServer) -> None:
    spawn = multiprocessing.get_context("spawn")
    ready, names = spawn.Barrier(3), [str(number) for number in range(300)]
    processes = [spawn.Process(target=apply_all, args=(redis_server.url, names, ready)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert {client.get(f"effect:{name}") for name in names} == {"1"}
