"""Generates load: sends tasks in a pattern of traffic.toml until it is stopped, or for a given time."""

import argparse
import logging
import os
import signal
import sys
import time
from collections import Counter as Count
from collections import deque
from collections.abc import Callable, Container, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain, islice, takewhile, zip_longest
from pathlib import Path
from random import Random
from threading import Event, Lock, Thread
from typing import Any
from uuid import uuid4

import prometheus_client
from kombu.exceptions import OperationalError
from redis import RedisError

from celery_app import app, durable
from celery_durable import BatchPublishError, DangerousSettingsError
from celery_durable.checks import refuse_dangerous_settings
from celery_durable.metrics.exposition import registry, serve
from settings import DELIVERY, settings
from traffic import Pattern, Sending, TrafficError, load_patterns, seconds

logger = logging.getLogger("producer")

PATTERNS = Path(__file__).with_name("traffic.toml")

MAX_LATE = 5.0  # s; messages that are later are skipped, so that no burst follows an interruption
RETRY_INTERVAL = 1.0  # s between two tries while Redis is unavailable
DEPTH_INTERVAL = 1.0  # s between two checks of the queues' depths
TOGETHER = 100  # messages of one publish, so that a stop and the other streams need not wait long for it
RESUME_BELOW = 0.8  # of max_queue_depth; resuming at the limit itself would stop and start every second
STOP_WITHIN = 0.5  # s that a running publish may still take after a stop

LAST_PUBLISH = prometheus_client.Gauge(
    "celery_producer_last_publish_timestamp_seconds", "When Redis last accepted a message of the producer."
)
THROTTLED = prometheus_client.Gauge(
    "celery_producer_throttled", "1 while a queue is too deep and the producer sends nothing to it.", ["queue"]
)
UNPUBLISHED = prometheus_client.Counter(
    "celery_producer_unpublished_total",
    "Messages that Redis refused, or skipped because it was unavailable. One that was tried may be in its queue.",
    ["task"],
)


@dataclass(frozen=True)
class Message:
    """A task to send. Every try has the same task id, because a failed one may have reached Redis."""

    sending: Sending
    args: list[Any]
    task_id: str

    def publish(self) -> None:
        """Send it, or add it to the open batch.

        The result is ignored: the producer does not read it, and requesting it would subscribe to a channel for each
        message.
        """
        options: dict[str, Any] = {"task_id": self.task_id, "ignore_result": True, "retry": False}
        if self.sending.priority is not None:
            options["priority"] = self.sending.priority
        app.tasks[self.sending.task].apply_async(self.args, queue=self.sending.routed, **options)


def publish_together(messages: list[Message]) -> None:
    """Send the messages in one round trip. Raises kombu's OperationalError or a RedisError: none is sent. Its subclass
    BatchPublishError names those that are not, or perhaps not."""
    with durable.batch() if len(messages) > 1 else nullcontext():
        for message in messages:
            message.publish()


class Stream:
    """The messages of one kind, in the order given by the seed, each with its due time."""

    def __init__(self, name: str, sending: Sending, seed: int, start: float) -> None:
        self.sending = sending
        self.queue = sending.routed
        self._start = start
        self._random = Random(f"{seed}/{name}")
        self._number = 0  # of the next message
        self._drawn: deque[Message] = deque()  # the next ones, as far as they are known

    @property
    def due(self) -> float:
        """When the next message is due."""
        return self._due(self._number)

    def _due(self, number: int) -> float:
        """Not a running sum, whose rounding errors would add up."""
        batch = self.sending.batch
        return self._start + number // batch * batch / self.sending.rate

    def postpone(self, to: float) -> None:
        """Move the schedule: the next message is due at `to`, the others follow at the same intervals."""
        self._start += to - self.due

    def due_messages(self, now: float, most: int) -> list[Message]:
        """The next messages that are due, at most so many."""
        number = sum(1 for _ in takewhile(lambda ahead: self._due(self._number + ahead) <= now, range(most)))
        while len(self._drawn) < number:
            self._draw()
        return list(islice(self._drawn, number))

    def _draw(self) -> None:
        self._drawn.append(Message(self.sending, self._random.choice(self.sending.args), str(uuid4())))

    def skip(self) -> None:
        """Continue with the message after the next."""
        if not self._drawn:
            self._draw()
        self._drawn.popleft()
        self._number += 1

    def remove(self, ids: Container[str]) -> None:
        """Continue after the messages with these task ids, of whatever stream; others that were tried stay next."""
        before = len(self._drawn)
        self._drawn = deque(message for message in self._drawn if message.task_id not in ids)
        self._number += before - len(self._drawn)


def queue_depths(queues: Iterable[str]) -> dict[str, int]:
    """Waiting messages of each queue, over all its priorities. Raises RedisError."""
    lists = {name: durable.priority_lists(name) for name in queues}
    with durable.broker.pipeline(transaction=False) as pipe:
        for name in chain.from_iterable(lists.values()):
            pipe.llen(name)
        lengths = iter(pipe.execute())
    return {name: sum(islice(lengths, len(of_queue))) for name, of_queue in lists.items()}


class Producer:
    """Sends a pattern's messages when they are due, together if several are.

    Times are seconds of `clock`, which is monotonic; tests replace `clock`, `sleep`, `depths` and `publish`.
    """

    def __init__(
        self,
        pattern: Pattern,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] | None = None,
        depths: Callable[[Iterable[str]], dict[str, int]] = queue_depths,
        publish: Callable[[list[Message]], None] = publish_together,
    ) -> None:
        self.stopping = Event()
        self.crashed = False
        self._clock, self._sleep = clock, sleep or self.stopping.wait
        self._depths, self._publish = depths, publish
        self._start = clock()
        self._end = self._start + pattern.duration if pattern.duration else float("inf")
        self._streams = [Stream(name, sending, pattern.seed, self._start) for name, sending in pattern.send.items()]
        self._queues = sorted({stream.queue for stream in self._streams})
        self._held: set[str] = set()
        self._counting, self._finished = Lock(), False  # `finish` may be called while a publish hangs
        self._away_since: float | None = None
        self._given_up = 0  # since Redis became unavailable
        self._next_try = self._next_depths = self._next_heartbeat = self._start
        self.published: Count[str] = Count()
        self.unpublished: Count[str] = Count()
        for queue in self._queues:
            THROTTLED.labels(queue).set(0)
        for stream in self._streams:
            UNPUBLISHED.labels(stream.sending.task)

    def run(self) -> None:
        """Send until the pattern's time is over or `stopping` is set."""
        while not self.stopping.is_set() and (now := self._clock()) < self._end:
            self._turn(now)

    def run_logged(self) -> None:
        """`run` for a thread: logs what it raises, which would be lost there."""
        try:
            self.run()
        except Exception:
            self.crashed = True
            logger.exception("the producer crashed")

    def finish(self, stuck: bool = False) -> None:
        """After `run`, or when a publish hangs: count the due messages that were not published."""
        with self._counting:
            self._finished = True
            if stuck or self._away_since is not None:
                self._give_up(due_before=min(self._clock(), self._end))

    def summary(self) -> str:
        """One line: what was published and what was not."""
        tasks = ", ".join(f"{task} {number}" for task, number in sorted(self.published.items()))
        return (
            f"published {self.published.total()}, unpublished {self.unpublished.total()} "
            f"in {self._clock() - self._start:.1f} s" + (f": {tasks}" if tasks else "")
        )

    def _turn(self, now: float) -> None:
        if self._away_since is None:
            self._look_at_depths(now)
        if self._away_since is None and now >= self._next_heartbeat:
            # Not while Redis is unavailable: then the container shall become unhealthy.
            (settings.run_dir / "heartbeat").touch()
            self._next_heartbeat = now + DELIVERY.heartbeat_interval
        self._limit_lateness(now)
        if self._away_since is None or now >= self._next_try:
            self._send(self._due(now))
        self._sleep(max(0.0, self._next_event() - self._clock()))

    def _next_event(self) -> float:
        if self._away_since is not None:
            return min(self._next_try, self._end)
        dues = [stream.due for stream in self._streams if stream.queue not in self._held]
        return min([*dues, self._end, self._next_heartbeat, self._next_depths if self._queues else self._end])

    def _limit_lateness(self, now: float) -> None:
        for stream in self._streams:
            if stream.queue in self._held:
                stream.postpone(max(stream.due, now))
            elif self._away_since is None and stream.due < now - MAX_LATE:
                stream.postpone(now)
        if self._away_since is not None:
            self._give_up(due_before=now - MAX_LATE)

    def _give_up(self, due_before: float) -> None:
        for stream in self._streams:
            while stream.due < due_before and stream.queue not in self._held:
                self._given_up += 1
                self._count_unpublished(stream.sending.task)
                stream.skip()

    def _count_unpublished(self, task: str) -> None:
        self.unpublished[task] += 1
        UNPUBLISHED.labels(task).inc()

    def _due(self, now: float) -> list[Message]:
        """The messages that are due, one of each stream in turn so that no stream delays another."""
        streams = [stream.due_messages(now, TOGETHER) for stream in self._streams if stream.queue not in self._held]
        in_turn = chain.from_iterable(zip_longest(*streams))
        return list(islice((message for message in in_turn if message), TOGETHER))

    def _send(self, messages: list[Message]) -> None:
        if not messages:
            return
        tasks = {message.task_id: message.sending.task for message in messages}
        refused: dict[str, str] = {}
        failure: Exception | None = None
        try:
            self._publish(messages)
        except BatchPublishError as error:
            if error.unknown or len(error.refused) == len(tasks):
                failure = error
            else:
                refused = error.refused
        except (OperationalError, RedisError) as error:
            failure = error
        with self._counting:
            if self._finished:
                return  # they are counted as unpublished
            if failure is not None:
                self._lost(failure)
                return
            self._count(tasks, refused)
        if self._away_since is not None:
            self._back(self._away_since)

    def _count(self, tasks: dict[str, str], refused: dict[str, str]) -> None:
        """Messages were sent, by task id, except those that Redis refused: one of its keys may have another type."""
        for task_id, task in tasks.items():
            if task_id in refused:
                self._count_unpublished(task)
            else:
                self.published[task] += 1
        if refused:
            logger.warning(
                "Redis refused %d of %d messages: %s", len(refused), len(tasks), next(iter(refused.values()))
            )
        for stream in self._streams:
            stream.remove(tasks)
        LAST_PUBLISH.set_to_current_time()

    def _back(self, since: float) -> None:
        now = self._clock()
        self._give_up(due_before=now - MAX_LATE)  # the try that succeeded may have waited for seconds
        logger.warning(
            "Redis accepts messages again, after %.1f s; %d could not be published", now - since, self._given_up
        )
        self._away_since = None
        self._next_depths = now

    def _lost(self, error: Exception) -> None:
        now = self._clock()
        self._next_try = now + RETRY_INTERVAL
        if self._away_since is None:
            self._away_since, self._given_up = now, 0
            logger.warning("Redis accepts no messages (%s); trying again every %g s", error, RETRY_INTERVAL)
            for queue in self._held:  # their depths are unknown now, and a message must be tried
                THROTTLED.labels(queue).set(0)
            self._held.clear()

    def _look_at_depths(self, now: float) -> None:
        if not self._queues or now < self._next_depths:
            return
        self._next_depths = now + DEPTH_INTERVAL
        try:
            depths = self._depths(self._queues)
        except RedisError as error:
            self._lost(error)
            return
        limit = settings.max_queue_depth
        for queue, depth in depths.items():
            if queue not in self._held and depth > limit:
                logger.warning("queue %s has %d messages, more than %d: sending to it is paused", queue, depth, limit)
                self._held.add(queue)
                THROTTLED.labels(queue).set(1)
            elif queue in self._held and depth < RESUME_BELOW * limit:
                logger.warning("queue %s has only %d messages: sending to it is resumed", queue, depth)
                self._held.remove(queue)
                THROTTLED.labels(queue).set(0)


def chosen_pattern(arguments: list[str]) -> tuple[str, Pattern]:
    """Name and pattern chosen by the command line or the environment. Raises TrafficError."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"Each option may also come from the environment: TRAFFIC, FOR, SEED. Patterns are in {PATTERNS}.",
    )
    env = os.environ.get
    parser.add_argument("--traffic", default=env("TRAFFIC") or "steady", help="what to send (default: steady)")
    parser.add_argument(
        "--for",
        dest="duration",
        default=env("FOR"),
        metavar="TIME",
        help="how long, like 60s, 5m or 1h (default: as the pattern says, else until it is stopped)",
    )
    parser.add_argument(
        "--seed",
        default=env("SEED"),
        help="an integer; the same seed gives the same arguments in the same order (default: as the pattern says)",
    )
    options = parser.parse_args(arguments)
    patterns = load_patterns(PATTERNS)
    if options.traffic not in patterns:
        raise TrafficError(f"TRAFFIC: no {options.traffic!r} in {PATTERNS.name}; choose one of {', '.join(patterns)}")
    changes: dict[str, Any] = {}
    if options.duration:
        try:
            changes["duration"] = seconds(options.duration)
        except ValueError as error:
            raise TrafficError(f"FOR: {error}; it is {options.duration!r}") from None
    if options.seed:
        try:
            changes["seed"] = int(options.seed)
        except ValueError:
            raise TrafficError(f"SEED: must be an integer; it is {options.seed!r}") from None
    return options.traffic, patterns[options.traffic].model_copy(update=changes)


def main(arguments: list[str]) -> int:
    """Run the producer. Returns its exit code: 0, 1 after a crash or for dangerous settings of Redis, 2 for a mistake
    in the patterns or the options, 130 after Ctrl-C."""
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s: %(levelname)s] %(message)s")
    try:
        name, pattern = chosen_pattern(arguments)
    except TrafficError as error:
        print(error, file=sys.stderr)
        return 2
    try:
        refuse_dangerous_settings(app)
    except DangerousSettingsError as error:
        print(error, file=sys.stderr)
        return 1
    producer = Producer(pattern)
    # In a thread, because a name lookup cannot be interrupted: without the redis container Docker's takes 10 s.
    thread = Thread(target=producer.run_logged, daemon=True)
    stopped_by: list[signal.Signals] = []

    def stop(number: int, _: object) -> None:
        stopped_by.append(signal.Signals(number))
        producer.stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    if settings.metrics_port is not None:
        serve(settings.metrics_port, registry())
    rate = sum(sending.rate for sending in pattern.send.values())
    logger.info("pattern %s: %g messages a second, seed %d", name, rate, pattern.seed)
    thread.start()
    while thread.is_alive() and not producer.stopping.is_set():
        thread.join(0.25)
    thread.join(STOP_WITHIN)
    producer.finish(stuck=thread.is_alive())
    for number in stopped_by[:1]:
        logger.info("stopped by %s", number.name)
    print(producer.summary(), flush=True)
    return 130 if signal.SIGINT in stopped_by else int(producer.crashed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
