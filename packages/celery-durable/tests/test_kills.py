"""A worker that is killed between any two commands to Redis loses no message, and none is delivered twice needlessly.

Several consumers in processes of their own take messages, acknowledge some, return some, and are killed after a number
of commands, or after the reply of one. kombu's own transport fails these checks.
"""

import json
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kombu import Queue

from .conftest import NewApp
from .project import SHORT, environment
from .redis_server import RedisServer

QUEUE = Queue("kills")
TIMES: dict[str, Any] = {**SHORT, "lease": 5, "lease_renewal": 1}

# Consumes until its queue is empty, and prints a JSON line for each thing that happens. It is killed after `commands`
# commands: when the last one is sent, or when its reply is there.
CONSUMER = """
import json, os, signal, socket, sys
from contextlib import suppress
from celery import Celery
from kombu import Consumer, Queue
from redis.connection import Connection
from celery_durable import Config, install

url, transport, times, plan = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4])
left = plan["commands"]

def say(**what):
    print(json.dumps(what), flush=True)

def die_after(call):
    def wrapped(*args, **kwargs):
        global left
        result = call(*args, **kwargs)
        if left is not None:
            left -= 1
            if left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return result
    return wrapped

app = Celery("kills", broker=url)
install(app, Config(store=url, transport=transport, **times))
turn = iter(plan["fates"] * 100)

def received(message):
    number = message.headers["number"]
    say(got=number, again=bool(message.headers.get("redelivered")))
    fate = next(turn)
    if fate == "acknowledge":
        say(acknowledged=number)
        message.ack()
    elif fate == "return":
        say(returned=number)
        message.requeue()

with app.connection_for_read() as connection:
    channel = connection.default_channel
    channel.basic_qos(0, plan["prefetch"], False)
    with Consumer(channel, [Queue("kills")], on_message=received):
        if plan["at"] == "sent":
            Connection.send_packed_command = die_after(Connection.send_packed_command)
        else:
            Connection.read_response = die_after(Connection.read_response)
        quiet = 0
        while quiet < plan["patience"]:
            try:
                connection.drain_events(timeout=0.2)
                quiet = 0
            except socket.timeout:
                quiet += 1
say(ended=True)
"""


@dataclass
class Life:
    """What a consumer said."""

    events: list[dict[str, Any]]

    @property
    def killed(self) -> bool:
        return not any("ended" in event for event in self.events)

    def numbers(self, what: str) -> list[int]:
        return [event[what] for event in self.events if what in event]


def consumer(url: str, transport: str, **plan: Any) -> "subprocess.Popen[str]":
    arguments = [url, transport, json.dumps(TIMES), json.dumps(plan)]
    return subprocess.Popen(
        [sys.executable, "-c", CONSUMER, *arguments], env=environment(), stdout=subprocess.PIPE, text=True
    )


def life_of(process: "subprocess.Popen[str]") -> Life:
    said, _ = process.communicate(timeout=120)
    assert process.returncode in (0, -signal.SIGKILL), said
    return Life([json.loads(line) for line in said.splitlines()])


FATES = st.lists(st.sampled_from(["acknowledge", "acknowledge", "hold", "return"]), min_size=1, max_size=5)
PLANS = st.fixed_dictionaries(
    {
        "commands": st.integers(1, 30),
        "at": st.sampled_from(["sent", "replied"]),
        "prefetch": st.integers(1, 4),
        "fates": FATES,
        "patience": st.just(2),
    }
)
REST = {"commands": None, "at": "sent", "prefetch": 10, "fates": ["acknowledge"], "patience": 9}


def wrong(app: Any, redis: RedisServer, transport: str, messages: int, plans: list[dict[str, Any]]) -> list[str]:
    """What is wrong after these lives and one that takes all that is left."""
    redis.reset()
    client = redis.client
    with app.connection_for_write() as connection, connection.Producer() as producer:
        for number in range(messages):
            producer.publish(
                {}, routing_key="kills", declare=[QUEUE], headers={"number": number}, priority=0, retry=False
            )
    lives = [life_of(each) for each in [consumer(redis.url, transport, **plan) for plan in plans]]
    # As if their leases, or the visibility timeout, had ended.
    for tag in client.zrange("unacked_index", 0, -1):
        client.zadd("unacked_index", {tag: 1})
    seconds, _ = client.time()
    client.hset("celery-durable:leases", mapping={"seen": seconds, "hold": 0})
    last = life_of(consumer(redis.url, transport, **REST))
    everything = [*lives, last]

    problems = []
    taken = {number for life in everything for number in life.numbers("got")}
    if lost := set(range(messages)) - taken:
        problems.append(f"never delivered: {sorted(lost)}")
    settled = {number for life in everything for number in life.numbers("acknowledged")}
    if unsettled := set(range(messages)) - settled:
        problems.append(f"delivered, not acknowledged, and not redelivered: {sorted(unsettled)}")
    # A message may be delivered again if its consumer was killed, held it to its end, or returned it.
    for life in everything:
        for number, times in Counter(life.numbers("got")).items():
            if times - 1 > life.numbers("returned").count(number):
                problems.append(f"{number} delivered {times} times to one consumer")
    for number in settled:
        ends = [life for life in everything if number in life.numbers("acknowledged")]
        if sum(not life.killed for life in ends) > 1:
            problems.append(f"{number} acknowledged by two consumers that were not killed")
    if left := [key for key in client.scan_iter() if key.startswith((b"kills", b"unacked"))]:
        problems.append(f"left in Redis: {left}")
    return problems


@pytest.fixture
def app(new_app: NewApp) -> Any:
    return new_app({"task_queues": [QUEUE]})


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(messages=st.integers(1, 12), plans=st.lists(PLANS, min_size=1, max_size=3))
def test_no_message_is_lost_or_delivered_twice(
    app: Any, redis_server: RedisServer, messages: int, plans: list[dict[str, Any]]
) -> None:
    assert wrong(app, redis_server, "atomic", messages, plans) == []


def test_kombus_own_transport_fails_this(app: Any, redis_server: RedisServer) -> None:
    """It takes a message and books it in two steps. Each number of commands is a moment to be killed at."""
    found = []
    for commands in range(1, 5):
        plan = {**REST, "commands": commands, "patience": 2, "prefetch": 1}
        found += wrong(app, redis_server, "stock", 3, [plan])
    assert any("never delivered" in problem for problem in found), found
