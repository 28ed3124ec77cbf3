"""`Config`: every option of the library in one typed object, checked when it is created."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import urlsplit

from celery_durable.errors import ConfigError

MIB = 1024 * 1024
EXIT_TAKES = 3  # s that a worker needs to exit after its soft shutdown (measured: under 2)
Transport = Literal["stock", "atomic"]
PUBLISH_TRIES = 3  # see `settings.DEFAULTS`, task_publish_retry_policy


@dataclass(frozen=True, kw_only=True)
class Config:
    """The options of `install`. Times are in seconds, sizes in bytes. Raises ConfigError.

    The time constants depend on each other; `_rules` lists the inequalities, each with its reason.
    """

    #: Redis (redis:// or rediss://) of the outbox and the done markers. It must keep its data: appendonly yes.
    store: str
    #: Prefix of every key of the library, in the store and in the broker. Two apps that share a store need different
    #: prefixes, or each publishes the other's outbox.
    key_prefix: str = "celery-durable:"
    #: File with the password for every Redis URL (broker, results, store) that has none. It is read at each connect,
    #: so a changed password needs no restart.
    password_file: Path | None = None

    # --- The transport ---

    #: "atomic": with leases, for tasks and delays of any length; where it cannot be used, "stock" is, and one log line
    #: says why (atomic/README.md). "stock": kombu's, with a visibility timeout.
    transport: Transport = "atomic"
    #: atomic: a held message that is not renewed returns to its queue after this time.
    lease: float = 15
    #: atomic: how often a worker renews what it holds, from a thread.
    lease_renewal: float = 5
    #: atomic: a message whose workers were killed or cut off this often becomes a dead letter.
    max_deliveries: int = 20

    # --- A message that a worker holds: delivered, not yet acknowledged ---

    #: stock: a held message that is not renewed returns to its queue after this time. kombu's default is an hour.
    visibility_timeout: float = 90
    #: stock: how often a worker renews the messages it holds: running, or waiting for an ETA or a rate limit. Without
    #: renewal a message that is held longer than visibility_timeout is run a second time. A solo worker cannot renew
    #: while it runs a task.
    renew_interval: float = 25
    #: stock: how often workers look for messages past visibility_timeout. kombu's default is about 100 s.
    restore_interval: float = 1
    #: stock: lifetime of the lock that a worker takes to look for them. If the worker dies, the others wait for it to
    #: expire. kombu's default is 300 s.
    restore_mutex_expire: float = 3
    #: stock: the longest countdown, ETA or retry delay that is published. A worker holds the message until then.
    max_delay: float = 60
    #: The shortest retry delay. An immediate retry can end before this try stores RETRY, which then overwrites SUCCESS.
    min_retry_delay: float = 1
    #: The most messages waiting for an ETA or a rate limit that one worker holds, about 8 kB each.
    max_held: int = 1000

    # --- A task ---

    #: Default of task_soft_time_limit: SoftTimeLimitExceeded is raised in the task.
    soft_time_limit: float = 3540
    #: Default of task_time_limit: its process is killed; with the solo and threads pools the watchdog ends the worker.
    time_limit: float = 3600
    #: Retry delay of a task that sets none. Celery's is 180 s.
    default_retry_delay: float = 5
    #: How long a stopping worker waits for running tasks; then their messages return to the queue. The environment
    #: must set REMAP_SIGTERM=SIGQUIT, or the worker waits up to their time limit after SIGTERM. So does a worker of the
    #: solo or threads pool, which cannot end a task: a kill then returns its messages within `lease`.
    soft_shutdown: float = 6
    #: How long the container runtime waits before SIGKILL (compose's stop_grace_period, Kubernetes'
    #: terminationGracePeriodSeconds). Only used for checks.
    stop_grace_period: float = 20

    # --- Connections ---

    #: How often idle connections to Redis are checked.
    health_check_interval: float = 10
    #: How long a publisher waits for a connection. Without time-outs a frozen Redis blocks it for over 45 s.
    publish_connect_timeout: float = 2
    #: How long a publisher waits for a reply.
    publish_socket_timeout: float = 3

    # --- The outbox ---

    #: An entry that has not ended this long after its publish or its last start is published again. Must be longer
    #: than the redelivery of a killed worker's message takes.
    republish_after: float = 95
    #: After how long an entry whose message still waits in its queue is checked again.
    recheck_after: float = 15
    #: How often beat sends the task that checks the outbox.
    reconcile_interval: float = 10
    #: The queue of that task; it should not wait behind long tasks. None: the default queue.
    reconcile_queue: str | None = None
    #: Its priority in that queue.
    reconcile_priority: int = 1

    # --- Messages that cannot be run ---

    #: How long a message of a task that no worker knows is delayed in total (a deployment may be in progress); time in
    #: the queue does not count. After that it becomes a dead letter.
    unknown_task_patience: float = 120
    #: Length of each such delay; after it the message returns to its queue.
    unknown_task_delay: float = 5
    #: A larger message is not published, and one that is already in a queue becomes a dead letter.
    max_message_bytes: int = MIB
    #: The most dead letters that are kept. Beyond it the oldest are removed, counted and logged.
    max_dead_letters: int = 10_000
    #: The same in bytes.
    max_dead_letter_bytes: int = 64 * MIB

    # --- Results ---

    #: A task that returns more fails (ResultTooLargeError). Arguments, errors and tracebacks are truncated to it.
    max_result_bytes: int = MIB
    #: The same for the error of a task whose result is ignored: no caller waits for it.
    max_ignored_error_bytes: int = 10_000
    #: Results and errors are not stored while Redis uses more than this share of its maxmemory: the rest is reserved
    #: for the outbox. 1: no limit.
    result_memory_share: float = 0.9

    # --- Redis ---

    #: Memory limit of each Redis container, if known. Only used for checks.
    redis_memory_limit: int | None = None

    # --- Revocations ---

    #: How long a revoked task id is remembered, across restarts and by new workers. If messages wait in Redis for their
    #: ETA (`transport="atomic"`): for as long after the last of these is due.
    revoked_for: float = 86_400
    #: The most that are remembered; the oldest are removed first.
    max_revoked: int = 50_000

    # --- Chords ---

    #: A chord whose callback was not sent this long after the chord was published counts as overdue.
    chord_overdue_after: float = 600

    # --- Liveness ---

    #: File touched by a worker's event loop, and by beat while it sends due entries in time. None: no file.
    heartbeat_file: Path | None = None
    #: How often a worker touches it.
    heartbeat_interval: float = 2
    #: How often a worker renews its registration in the broker.
    registration_interval: float = 5
    #: How long the registration of a killed worker is kept.
    registration_kept: float = 86_400
    #: How often the watchdog checks.
    watchdog_interval: float = 2
    #: A worker exits when its event loop is blocked for this long although Redis answers.
    hung_after: float = 60
    #: A worker exits when it is idle and takes none of the waiting messages for this long.
    deaf_after: float = 30
    #: Default of beat_max_loop_interval.
    beat_max_loop: float = 5
    #: Beat is unhealthy when an entry has been due and unsent for longer.
    beat_overdue_after: float = 15

    # --- Metrics ---

    #: Port of /metrics of a worker and of beat. None: no port. Needs the extra `metrics`.
    metrics_port: int | None = None

    # --- Protections: each can be turned off, so that a test can show what fails without it ---

    #: A task with outbox=True is written to the store before it is published, and published again until it has ended.
    outbox: bool = True
    #: `Durable.once` applies an effect together with its done marker.
    done_markers: bool = True
    #: A message is acknowledged when its task is done.
    acks_late: bool = True
    #: A task whose process was killed is retried, or its message is requeued.
    worker_lost: bool = True
    #: Held messages are renewed.
    renewal: bool = True
    #: Publishers' connections have time-outs.
    publish_timeout: bool = True
    #: A worker that hangs exits, so that its supervisor restarts it.
    watchdog: bool = True
    #: A message that cannot be read becomes a dead letter instead of crashing the worker.
    consumer: bool = True
    #: A message that cannot be run becomes a dead letter instead of being discarded.
    dead_letters: bool = True

    def __post_init__(self) -> None:
        if wrong := [*self._types(), *self._rules()]:
            raise ConfigError("\n".join(["Config is not valid:", *(f"  {line}" for line in wrong)]))

    def _types(self) -> Iterator[str]:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is float and not _is_number(value):
                yield f"{field.name}: {value!r}; it must be a number above 0"
            elif field.type is int and not _is_whole(value, least := 0 if field.name == "reconcile_priority" else 1):
                yield f"{field.name}: {value!r}; it must be a whole number, {least} or above"
            elif field.type is bool and not isinstance(value, bool):
                yield f"{field.name}: {value!r}; it must be True or False"
            elif field.type == Path | None and not isinstance(value, Path | None):
                yield f"{field.name}: {value!r}; it must be a pathlib.Path, or None"
        if self.transport not in get_args(Transport):
            yield f"transport: {self.transport!r}; it must be one of {', '.join(get_args(Transport))}"
        if not isinstance(self.reconcile_queue, str | None):
            yield f"reconcile_queue: {self.reconcile_queue!r}; it must be the name of a queue, or None"
        if self.redis_memory_limit is not None and not _is_whole(self.redis_memory_limit):
            yield f"redis_memory_limit: {self.redis_memory_limit!r}; it must be a whole number, 1 or above, or None"
        if self.metrics_port is not None and not (_is_whole(self.metrics_port) and self.metrics_port <= 65535):
            yield f"metrics_port: {self.metrics_port!r}; it must be a port (1 to 65535), or None for no port"
        if not isinstance(self.store, str) or urlsplit(self.store).scheme not in ("redis", "rediss"):
            yield "store: must be the address of a Redis, redis://host:6379/0 or rediss://…"
        if not isinstance(self.key_prefix, str) or not self.key_prefix:
            yield f"key_prefix: {self.key_prefix!r}; it must be a string that is not empty, like 'shop:'"

    def _rules(self) -> Iterator[str]:
        if any(self._types()):
            return
        sweep = self.visibility_timeout + self.restore_mutex_expire + self.restore_interval
        leaving = EXIT_TAKES + self.publish_connect_timeout + self.publish_socket_timeout
        tries = PUBLISH_TRIES * (self.publish_connect_timeout + self.publish_socket_timeout)
        longest = self.visibility_timeout if self.transport == "stock" else math.inf
        for name, bound, less, why in (
            ("soft_time_limit", self.time_limit, "time_limit", "the soft limit comes before the hard one"),
            ("max_delay", longest, "visibility_timeout", "or a stock worker runs a delayed task twice"),
            ("renew_interval", self.visibility_timeout / 3, "visibility_timeout / 3", "two renewals may fail in a row"),
            ("lease_renewal", self.lease / 2 - 1, "lease / 2 - 1 s", "two renewals may fail in a row"),
            ("min_retry_delay", self.max_delay, "max_delay", "or no retry can be published"),
            ("default_retry_delay", self.max_delay, "max_delay", "or a retry is refused"),
            ("unknown_task_delay", self.visibility_timeout, "visibility_timeout", "or it is redelivered before"),
            ("recheck_after", self.republish_after, "republish_after", "it is the shorter of the two"),
            ("heartbeat_interval", self.hung_after, "hung_after", "the loop must run in between"),
            ("soft_shutdown", self.stop_grace_period - leaving, "stop_grace_period, less 3 s and the publish time-outs",
             "or the worker is killed during it"),
        ):  # fmt: skip
            value = getattr(self, name)
            if not value < bound:
                yield f"{name}: {value:g}; it must be less than {less} ({bound:g}): {why}"
        if self.result_memory_share > 1:
            yield f"result_memory_share: {self.result_memory_share:g}; it must be at most 1: it is a share of maxmemory"
        if self.max_message_bytes > self.max_dead_letter_bytes:
            yield (
                f"max_message_bytes: {self.max_message_bytes}; it must be at most max_dead_letter_bytes "
                f"({self.max_dead_letter_bytes}): or a dead letter is not kept"
            )
        if not sweep < self.republish_after:
            yield (
                f"republish_after: {self.republish_after:g}; it must be more than visibility_timeout + "
                f"restore_mutex_expire + restore_interval ({sweep:g}): or a killed worker's tasks are published again "
                "although they are redelivered"
            )
        if not tries < self.soft_time_limit:
            yield (
                f"soft_time_limit: {self.soft_time_limit:g}; it must be more than {PUBLISH_TRIES} times "
                f"(publish_connect_timeout + publish_socket_timeout) ({tries:g}): or it interrupts a publish"
            )
        if not self.soft_shutdown < self.hung_after:
            yield (
                f"hung_after: {self.hung_after:g}; it must be more than soft_shutdown ({self.soft_shutdown:g}): "
                "a soft shutdown stops the event loop"
            )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _is_whole(value: object, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
