"""A process that is killed between any two commands to Redis loses no message, and none is delivered twice needlessly.

Publishers and consumers in processes of their own publish, take, acknowledge, return, reject and delay messages, renew
their leases and return those of others, and are killed after a number of commands, or after the reply of one. Leases
lapse meanwhile, also those of living consumers. A fetch that books what it takes in a second step fails these checks;
so do a renewal that renews nothing, and kombu's own transport.
"""

import json
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from threading import Timer
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kombu import Queue

from .conftest import NewApp
from .project import SHORT, environment
from .redis_server import RedisServer

PRIORITIES = 3
QUEUE = Queue("kills")
LISTS = {"priority_steps": list(range(PRIORITIES))}
TIMES: dict[str, Any] = {**SHORT, "lease": 5, "lease_renewal": 1}

# Each process prints a JSON line for each thing that happens. It is killed after `commands` commands: when the last one
# is sent, or when its reply is there.
PROCESS = """
import json, os, signal, socket, sys, time
from hashlib import sha1
from celery import Celery
from kombu import Consumer, Queue
from kombu.asynchronous import Hub
from redis.connection import Connection
from celery_durable import Config, install
from celery_durable.atomic.channel import Channel
from celery_durable.atomic.fetching import Fetcher
from celery_durable.atomic.scripts import FETCH, RENEW

url, transport, times, lists, plan = *sys.argv[1:3], *map(json.loads, sys.argv[3:])
left = plan["commands"]

def say(**what):
    sys.stdout.write(json.dumps(what) + "\\n")  # at once: another thread may say something, too
    sys.stdout.flush()

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

def count_commands():
    if plan["at"] == "sent":
        Connection.send_packed_command = die_after(Connection.send_packed_command)
    else:
        Connection.read_response = die_after(Connection.read_response)

app = Celery("kills", broker=url, broker_transport_options=lists)
install(app, Config(store=url, transport=transport, **times))
"""
PUBLISHER = """
with app.connection_for_write() as connection, connection.Producer() as producer:
    producer.maybe_declare(Queue("kills")(connection.default_channel))
    count_commands()
    for number in plan["numbers"]:
        say(publishing=number)
        eta = {"eta": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time.time() + 1.5))} if number % 5 == 4 else {}
        priority = number % len(lists["priority_steps"])
        producer.publish({}, routing_key="kills", headers={"number": number, **eta}, priority=priority, retry=False)
        say(published=number)
say(ended=True)
"""
# Until its queue is empty for a while, or until nothing is left at all. In an event loop it reads ahead, and
# acknowledgements wait for the next fetch.
CONSUMER = """
if plan["in_two_steps"]:
    FETCH.text = FETCH.text.replace("if #index > 0 then", "if false then")
    FETCH.sha = sha1(FETCH.text.encode()).hexdigest()
    accept = Fetcher._accept

    def accept_and_book(self, reply):
        found = accept(self, reply)
        channel = self._channel
        with channel.raw_client() as client:
            for each in found:
                client.hset(channel.books[0], each.tag, b'[%s, "", "kills"]' % each.message)
                client.zadd(channel.books[1], {each.tag: time.time()})
        return found

    Fetcher._accept = accept_and_book

if plan["renews_nothing"]:
    RENEW.text = "return {}"
    RENEW.sha = sha1(RENEW.text.encode()).hexdigest()

return_unread = Channel._return_unread

def said(self, client, taken):
    say(unread=json.loads(taken.message)["headers"]["number"])
    return return_unread(self, client, taken)

Channel._return_unread = said

fates = iter(plan["fates"] * 100)

def acknowledge(message):
    say(acknowledged=message.headers["number"])
    message.ack()

def received(message):
    received.number += 1
    number = message.headers["number"]
    say(got=number, again=bool(message.headers.get("redelivered")))
    fate = next(fates)
    if fate == "acknowledge":
        acknowledge(message)
    elif fate == "acknowledge late":
        kept.append(message)
    elif fate == "return":
        say(returned=number)
        message.requeue()
    elif fate == "reject":
        say(rejected=number)
        message.reject()
    elif fate == "delay":
        say(delayed=number)
        message.channel.delays.park(message, time.time() + 1)

received.number, kept = 0, []
hub = Hub()

def wait(connection):
    # Up to 0.2 s for a message. Raises socket.timeout.
    if plan["ahead"] is None:
        return connection.drain_events(timeout=0.2)
    before, until = received.number, time.monotonic() + 0.2
    while received.number == before:
        if time.monotonic() > until:
            raise socket.timeout
        hub.run_once()

def anything_left():
    with app.durable.raw_broker() as client:
        return client.exists("unacked", "celery-durable:delayed:kills", *app.durable.priority_lists("kills"))

with app.connection_for_read() as connection:
    channel = connection.default_channel
    channel.basic_qos(0, plan["prefetch"], False)
    if plan["ahead"] is not None:
        channel._ahead.number = lambda: plan["ahead"]
        hub.call_repeatedly(0.1, lambda: None)
        connection.register_with_event_loop(hub)
    with Consumer(channel, [Queue("kills")], on_message=received):
        count_commands()
        quiet, until = 0, time.monotonic() + 30
        while quiet < plan["patience"] or plan["until_empty"] and anything_left() and time.monotonic() < until:
            try:
                wait(connection)
                quiet = 0
            except socket.timeout:
                quiet += 1
        for message in kept:
            acknowledge(message)
say(ended=True)
"""


@dataclass
class Life:
    """What a process said."""

    events: list[dict[str, Any]]

    @property
    def killed(self) -> bool:
        return not any("ended" in event for event in self.events)

    def numbers(self, what: str) -> list[int]:
        return [event[what] for event in self.events if what in event]

    def first_deliveries(self) -> list[int]:
        return [event["got"] for event in self.events if "got" in event and not event["again"]]


@dataclass
class Arena:
    """Starts processes one after the other or together, and collects what they said."""

    url: str
    transport: str
    lives: list[Life] = field(default_factory=list)

    def run(self, *processes: tuple[str, dict[str, Any]], meanwhile: Timer | None = None) -> None:
        """Together."""
        arguments = [self.url, self.transport, json.dumps(TIMES), json.dumps(LISTS)]
        started = [
            subprocess.Popen(
                [sys.executable, "-c", PROCESS + program, *arguments, json.dumps(plan)],
                env=environment(),
                stdout=subprocess.PIPE,
                text=True,
            )
            for program, plan in processes
        ]
        if meanwhile:
            meanwhile.start()
        for process in started:
            said, _ = process.communicate(timeout=120)
            assert process.returncode in (0, -signal.SIGKILL), said
            self.lives.append(Life([json.loads(line) for line in said.splitlines()]))
        if meanwhile:
            meanwhile.join()

    def numbers(self, what: str) -> list[int]:
        return [number for life in self.lives for number in life.numbers(what)]


KILLED: dict[str, Any] = {"commands": st.integers(1, 30), "at": st.sampled_from(["sent", "replied"])}
FATES = st.sampled_from(["acknowledge", "acknowledge", "acknowledge late", "hold", "return", "reject", "delay"])
CONSUMERS = st.fixed_dictionaries(
    {
        **KILLED,
        "prefetch": st.integers(1, 4),
        "fates": st.lists(FATES, min_size=1, max_size=5),
        "patience": st.integers(1, 6),
        "ahead": st.none() | st.integers(0, 5),
        "in_two_steps": st.just(False),
        "renews_nothing": st.just(False),
        "until_empty": st.just(False),
    }
)
PUBLISHERS = st.fixed_dictionaries(KILLED)
REST: dict[str, Any] = {
    "commands": None,
    "at": "sent",
    "prefetch": 10,
    "fates": ["acknowledge"],
    "patience": 1,
    "until_empty": True,
    "ahead": None,
    "in_two_steps": False,
    "renews_nothing": False,
}


LAPSE = """
for _, tag in ipairs(redis.call('ZRANGE', 'unacked_index', 0, -1)) do
    redis.call('ZADD', 'unacked_index', 1, tag)
end
redis.call('HSET', 'celery-durable:leases', 'seen', redis.call('TIME')[1], 'hold', 0)
return redis.call('HVALS', 'unacked')
"""


def lapse(client: Any) -> list[int]:
    """As if all leases, or the visibility timeout, had ended. Returns the messages that were held."""
    return [json.loads(value)[0]["headers"]["number"] for value in client.eval(LAPSE, 0)]


def wrong(
    app: Any,
    redis: RedisServer,
    transport: str,
    messages: int,
    rounds: list[list[dict[str, Any]]],
    publisher: dict[str, Any] | None = None,
    lapse_after: float | None = None,
) -> list[str]:
    """What is wrong after these consumers and one that takes all that is left. The consumers of a round run together;
    after a round all leases lapse. `publisher`: of one that runs beside the first; `lapse_after`: seconds since the
    begin of a round when they do so, too."""
    redis.reset()
    client, arena = redis.client, Arena(redis.url, transport)
    lapsed: set[int] = set()  # while their consumers may live
    arena.run((PUBLISHER, {"commands": None, "at": "sent", "numbers": list(range(messages))}))
    beside = [(PUBLISHER, {**publisher, "numbers": list(range(100, 106))})] if publisher else []
    for plans in rounds:
        meanwhile = Timer(lapse_after, lambda: lapsed.update(lapse(client))) if lapse_after is not None else None
        arena.run(*beside, *((CONSUMER, plan) for plan in plans), meanwhile=meanwhile)
        beside = []
        lapse(client)
    arena.run((CONSUMER, REST))

    problems = []
    taken = set(arena.numbers("got"))
    if lost := set(arena.numbers("published")) - taken:
        problems.append(f"never delivered: {sorted(lost)}")
    dead = {json.loads(letter.payload)["headers"]["number"] for letter in letters_of(app)}
    if unsettled := taken - set(arena.numbers("acknowledged")) - dead:
        problems.append(f"delivered, not acknowledged, and not redelivered: {sorted(unsettled)}")
    if dead - set(arena.numbers("rejected")):
        problems.append(f"dead letters that nobody rejected: {sorted(dead)}")
    # Not in order: what was delayed, by its publisher or a consumer, is delivered when it is due; and while a
    # consumer had read something ahead, which it returned, later ones may have been taken.
    apart = {*arena.numbers("delayed"), *arena.numbers("unread")}
    # A message may be delivered again if its consumer was killed, held it to its end, returned or delayed it.
    for life in arena.lives:
        for number, times in Counter(life.numbers("got")).items():
            if number not in lapsed and times - 1 > [*life.numbers("returned"), *life.numbers("delayed")].count(number):
                problems.append(f"{number} delivered {times} times to one consumer")
        in_order = [each for each in life.first_deliveries() if each % 5 != 4 and each not in apart]  # 4: with an ETA
        for priority in range(PRIORITIES):
            first = [each for each in in_order if each % PRIORITIES == priority]
            if first != sorted(first):
                problems.append(f"not in their order: {first}")
    for number in taken:
        ends = [life for life in arena.lives if number in {*life.numbers("acknowledged"), *life.numbers("rejected")}]
        if sum(not life.killed for life in ends) > 1 and number not in lapsed:
            problems.append(f"{number} settled by two consumers that were not killed")
    if left := [key for key in client.scan_iter() if key.startswith((b"kills", b"unacked", b"celery-durable:delayed"))]:
        problems.append(f"left in Redis: {left}")
    return problems


def letters_of(app: Any) -> list[Any]:
    with app.durable.raw_broker() as client:
        return list(app.durable.dead_letters.read(client))


@pytest.fixture
def app(new_app: NewApp) -> Any:
    return new_app({"task_queues": [QUEUE], "broker_transport_options": LISTS})


@settings(
    max_examples=settings().max_examples // 10,  # each starts several processes
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    messages=st.integers(0, 12),
    rounds=st.lists(st.lists(CONSUMERS, min_size=1, max_size=3), min_size=1, max_size=2),
    publisher=st.none() | PUBLISHERS,
    lapse_after=st.none() | st.floats(0.5, 2.5),
)
def test_no_message_is_lost_or_delivered_twice(
    app: Any,
    redis_server: RedisServer,
    messages: int,
    rounds: list[list[dict[str, Any]]],
    publisher: dict[str, Any] | None,
    lapse_after: float | None,
) -> None:
    assert wrong(app, redis_server, "atomic", messages, rounds, publisher, lapse_after) == []


@pytest.mark.parametrize("renews", [True, False])
def test_what_is_held_for_longer_than_a_lease_is_delivered_once(
    app: Any, redis_server: RedisServer, renews: bool
) -> None:
    """It is found if a renewal renews nothing."""
    patience = int(2 * TIMES["lease"] / 0.2)
    plan = {
        **REST,
        "until_empty": False,
        "prefetch": 1,
        "fates": ["acknowledge late"],
        "patience": patience,
        "renews_nothing": not renews,
    }
    found = wrong(app, redis_server, "atomic", 1, [[plan, plan]])
    assert found == ([] if renews else ["0 settled by two consumers that were not killed"])


@pytest.mark.parametrize(
    ("transport", "in_two_steps", "ahead"), [("stock", False, None), ("atomic", True, None), ("atomic", True, 3)]
)
def test_a_fetch_that_is_not_atomic_fails_this(
    app: Any, redis_server: RedisServer, transport: str, in_two_steps: bool, ahead: int | None
) -> None:
    """Each number of commands is a moment to be killed at."""
    found: list[str] = []
    for commands in range(1, 9):
        plan = {
            **REST,
            "commands": commands,
            "patience": 2,
            "until_empty": False,
            "prefetch": 1,
            "ahead": ahead,
            "in_two_steps": in_two_steps,
        }
        found += wrong(app, redis_server, transport, 3, [[plan]])
        if any("never delivered" in problem for problem in found):
            return
    pytest.fail(f"nothing was lost: {found}")
