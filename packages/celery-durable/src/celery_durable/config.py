"""`Config`: every choice of the library in one typed object, checked when it is made."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from urllib.parse import urlsplit

from celery_durable.errors import ConfigError

MIB = 1024 * 1024
EXIT_TAKES = 3  # s that a worker needs to leave after its soft shutdown (measured: under 2)
PUBLISH_TRIES = 3  # see `settings.DEFAULTS`, task_publish_retry_policy


@dataclass(frozen=True, kw_only=True)
class Config:
    """What `install` makes of an app. Times are in seconds, sizes in bytes. Raises ConfigError.

    The time constants depend on one another; `_rules` has the inequalities, each with its reason.
    """

    #: Redis (redis:// or rediss://) of the outbox and the done markers. It must keep its data: appendonly yes.
    store: str
    #: Before every key of the library, in the store and in the broker. Two apps that share a store need two prefixes,
    #: or each publishes the other's outbox.
    key_prefix: str = "celery-durable:"
    #: File with the password of every Redis URL (broker, results, store) that has none. Read at each connect, so a
    #: replaced password is followed.
    password_file: Path | None = None

    # --- A message that a worker holds ---

    #: A held message that nobody renews goes back to its queue after this. kombu's default is an hour.
    visibility_timeout: float = 90
    #: How often a worker renews what it holds: running, waiting for an ETA, or for a rate limit. Without it whatever
    #: waits longer than visibility_timeout runs a second time.
    renew_interval: float = 25
    #: How often workers look for messages past visibility_timeout. kombu's default is about 100 s.
    restore_interval: float = 1
    #: A worker that dies while it looks keeps the others from looking for so long. kombu's default is 300 s.
    restore_mutex_expire: float = 3
    #: The largest countdown, ETA or retry delay that is published. A worker holds such a message until it is due.
    max_delay: float = 60
    #: The shortest retry delay. A retry at once can end before this try has stored RETRY, which then hides its SUCCESS.
    min_retry_delay: float = 1
    #: Messages with an ETA or behind a rate limit that one worker holds at most, about 8 kB each.
    max_held: int = 1000

    # --- A task ---

    #: Default of task_soft_time_limit: SoftTimeLimitExceeded is raised in the task.
    soft_time_limit: float = 50
    #: Default of task_time_limit: its process is killed.
    time_limit: float = 60
    #: Retry delay where a task says nothing. Celery's is 180 s, longer than visibility_timeout.
    default_retry_delay: float = 5
    #: A stopping worker gives running tasks so long; then they go back to their queue. Its environment must say
    #: REMAP_SIGTERM=SIGQUIT, or SIGTERM waits for them up to their time limit.
    soft_shutdown: float = 6
    #: What whoever runs the worker waits before SIGKILL (compose's stop_grace_period, Kubernetes'
    #: terminationGracePeriodSeconds). Only checked.
    stop_grace_period: float = 20

    # --- Connections ---

    #: How often idle connections to Redis are checked.
    health_check_interval: float = 10
    #: A publisher waits so long for a connection. Without time-outs a frozen Redis holds it for over 45 s.
    publish_connect_timeout: float = 2
    #: And so long for an answer.
    publish_socket_timeout: float = 3

    # --- The outbox ---

    #: An entry that has not ended so long after its publish or its last start is published again. Longer than a killed
    #: worker's message takes to come back.
    republish_after: float = 95
    #: How soon an entry whose message waits in its queue is looked at again.
    recheck_after: float = 15
    #: How often beat publishes the message that has the outbox looked at.
    reconcile_interval: float = 10
    #: The queue of that message; it should not wait behind what takes long. None: the default queue.
    reconcile_queue: str | None = None
    #: Its priority in that queue.
    reconcile_priority: int = 1

    # --- Messages that cannot be run ---

    #: A message of a task that no worker knows is held back so long in all (a deploy may be under way); waiting in its
    #: queue does not count. Then it is a dead letter.
    unknown_task_patience: float = 120
    #: It is held back in steps of so long, each followed by a turn in its queue.
    unknown_task_delay: float = 5
    #: A larger message is not published, and one that is in a queue all the same becomes a dead letter.
    max_message_bytes: int = MIB
    #: So many dead letters are kept. If there are more the oldest are removed, counted and logged.
    max_dead_letters: int = 10_000
    #: And so many bytes of them.
    max_dead_letter_bytes: int = 64 * MIB

    # --- Results ---

    #: A task that returns more has failed (ResultTooLargeError). Arguments, errors and tracebacks are cut to it.
    max_result_bytes: int = MIB
    #: An error of a task whose result is ignored is kept for so many bytes at most; nobody waits for it.
    max_ignored_error_bytes: int = 10_000
    #: Results and errors are not stored while Redis uses more than this share of its maxmemory: the rest is for the
    #: outbox. 1: no such limit.
    result_memory_share: float = 0.9

    # --- Redis ---

    #: Memory that the container of each Redis may use, where it is known. Only checked.
    redis_memory_limit: int | None = None

    # --- Revocations ---

    #: A revoked task id is remembered so long, over restarts and by new workers.
    revoked_for: float = 86_400
    #: And so many of them; the oldest go first.
    max_revoked: int = 50_000

    # --- Chords ---

    #: A chord whose callback was not sent so long after it was published counts as overdue.
    chord_overdue_after: float = 600

    # --- Liveness ---

    #: File that a worker's event loop touches, and beat as long as it sends what is due. None: no file.
    heartbeat_file: Path | None = None
    #: How often a worker touches it.
    heartbeat_interval: float = 2
    #: How often a worker renews its registration in the broker.
    registration_interval: float = 5
    #: The registration of a worker that was killed is kept so long.
    registration_kept: float = 86_400
    #: How often the watchdog looks.
    watchdog_interval: float = 2
    #: A worker whose event loop stands still for so long ends itself, although Redis answers.
    hung_after: float = 60
    #: So does one that is idle and takes none of the messages that wait for it.
    deaf_after: float = 30
    #: Default of beat_max_loop_interval.
    beat_max_loop: float = 5
    #: Beat is unwell when an entry has been due and unsent for longer.
    beat_overdue_after: float = 15

    # --- Metrics ---

    #: Port of /metrics of a worker and of beat. None: none is opened. Needs the extra `metrics`.
    metrics_port: int | None = None

    # --- Protections: each can be switched off, so that a test can show what it protects from ---

    #: A task with outbox=True is written to the store before it is published, and published again until it has ended.
    outbox: bool = True
    #: `Durable.once` applies an effect together with its done marker.
    done_markers: bool = True
    #: A message is acknowledged when its task is done.
    acks_late: bool = True
    #: A task whose process was killed is retried, or its message given back.
    worker_lost: bool = True
    #: Held messages are renewed.
    renewal: bool = True
    #: Publishers' connections have time-outs.
    publish_timeout: bool = True
    #: A worker that hangs ends itself.
    watchdog: bool = True
    #: A message that cannot be read becomes a dead letter instead of ending the worker.
    consumer: bool = True
    #: A message that cannot be run becomes a dead letter instead of being thrown away.
    dead_letters: bool = True

    def __post_init__(self) -> None:
        if wrong := [*self._types(), *self._rules()]:
            raise ConfigError("\n".join(["Config cannot work:", *(f"  {line}" for line in wrong)]))

    def _types(self) -> Iterator[str]:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is float and not _is_number(value):
                yield f"{field.name}: {value!r}; it must be a number above 0"
            elif field.type is int and field.name != "reconcile_priority" and not _is_whole(value):
                yield f"{field.name}: {value!r}; it must be a whole number above 0"
            elif field.type is bool and not isinstance(value, bool):
                yield f"{field.name}: {value!r}; it must be True or False"
            elif field.type == Path | None and not isinstance(value, Path | None):
                yield f"{field.name}: {value!r}; it must be a pathlib.Path, or None"
        if self.reconcile_priority != 0 and not _is_whole(self.reconcile_priority):
            yield f"reconcile_priority: {self.reconcile_priority!r}; it must be a whole number, 0 or above"
        if not isinstance(self.reconcile_queue, str | None):
            yield f"reconcile_queue: {self.reconcile_queue!r}; it must be the name of a queue, or None"
        if self.redis_memory_limit is not None and not _is_whole(self.redis_memory_limit):
            yield f"redis_memory_limit: {self.redis_memory_limit!r}; it must be a whole number above 0, or None"
        if self.metrics_port is not None and not (_is_whole(self.metrics_port) and self.metrics_port <= 65535):
            yield f"metrics_port: {self.metrics_port!r}; it must be a port (1 to 65535), or None for no port"
        if not isinstance(self.store, str) or urlsplit(self.store).scheme not in ("redis", "rediss"):
            yield "store: must be the address of a Redis, redis://host:6379/0 or rediss://…"
        if not isinstance(self.key_prefix, str) or not self.key_prefix:
            yield f"key_prefix: {self.key_prefix!r}; it must be a text that is not empty, like 'shop:'"

    def _rules(self) -> Iterator[str]:
        if any(self._types()):
            return
        sweep = self.visibility_timeout + self.restore_mutex_expire + self.restore_interval
        leaving = EXIT_TAKES + self.publish_connect_timeout + self.publish_socket_timeout
        tries = PUBLISH_TRIES * (self.publish_connect_timeout + self.publish_socket_timeout)
        for name, bound, less, why in (
            ("soft_time_limit", self.time_limit, "time_limit", "the soft limit comes before the hard one"),
            ("time_limit", self.visibility_timeout, "visibility_timeout", "or a solo worker's task runs twice"),
            ("max_delay", self.visibility_timeout, "visibility_timeout", "or a stock worker runs a delayed task twice"),
            ("renew_interval", self.visibility_timeout / 3, "visibility_timeout / 3", "two renewals may fail"),
            ("min_retry_delay", self.max_delay, "max_delay", "or no retry can be published"),
            ("default_retry_delay", self.max_delay, "max_delay", "or a retry is refused"),
            ("unknown_task_delay", self.visibility_timeout, "visibility_timeout", "or the message comes back before"),
            ("recheck_after", self.republish_after, "republish_after", "it is the shorter of the two"),
            ("heartbeat_interval", self.hung_after, "hung_after", "the loop must turn in between"),
            ("soft_shutdown", self.stop_grace_period - leaving, "stop_grace_period, less 3 s and the publish time-outs",
             "or the worker is killed in the middle of it"),
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
                "besides being given back"
            )
        if not tries < self.soft_time_limit:
            yield (
                f"soft_time_limit: {self.soft_time_limit:g}; it must be more than {PUBLISH_TRIES} times "
                f"(publish_connect_timeout + publish_socket_timeout) ({tries:g}): or it cuts a publish of the task off"
            )
        if not self.soft_shutdown < self.hung_after:
            yield (
                f"hung_after: {self.hung_after:g}; it must be more than soft_shutdown ({self.soft_shutdown:g}): "
                "a soft shutdown stops the event loop"
            )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and _is_number(value)
