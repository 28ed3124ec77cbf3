"""The faults, one row each, of `make test-faults`, `make soak` and `make chaos`."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from faults import injections as how
from faults import malformed
from faults.arena import LONG, OUTBOX, PEER, PUBLISH_TAKES, Arena, Fault
from faults.ledger import Verdict
from settings import DELIVERY
from stack.stack import REDELIVERED_WITHIN

KILLED = REDELIVERED_WITHIN + 10  # s; a task of this load takes at most 2 s, and may wait in the queue
# s: what the outbox has published again, since Redis had lost it, is run.
REPUBLISHED = DELIVERY.republish_after + DELIVERY.reconcile_interval + KILLED
BACK_AT_WORK = 5  # s after Redis is available
# In CLIENT LIST, the connection on which a worker waits for messages: the atomic transport has Redis track keys.
WAITS = r"cmd=(?:bzmpop|evalsha) " if PEER == "celery-redis-plus" else "(?:flags=t|cmd=brpop) "


@contextmanager
def worker_cut_off(arena: Arena) -> Iterator[None]:
    with how.cut_off(arena, "broker", *arena.low_workers()):
        yield


@contextmanager
def publisher_cut_off(arena: Arena) -> Iterator[None]:
    with how.cut_off(arena, "broker", *arena.publisher()):
        yield


def every_malformed_message_is_a_dead_letter(arena: Arena, verdict: Verdict) -> None:
    """Each once, except those that can be read."""
    found = Counter(arena.malformed_dead_letters())
    expected = Counter(set(malformed.kinds(1)) - malformed.READABLE)
    if found != expected:
        verdict.wrong.append(f"dead letters too few: {[*expected - found]}, too many: {[*found - expected]}")


def overruns_are_dead_letters(arena: Arena, verdict: Verdict) -> None:
    """Each once, none applied, none run again."""
    found = [letter for letter in arena.dead_letters() if letter["task"] == "chaos.ledger.overrun"]
    if [letter["reason"] for letter in found] != ["hard time limit"] * 6:
        verdict.wrong.append(f"dead letters of the overruns: {found}")
    applied = arena.applied()
    if any("-doomed" in task for task, _ in applied.effects):
        verdict.wrong.append("an overrun was applied")
    runs = [task for task, _ in applied.runs if "-doomed" in task]
    if len(runs) != len(set(runs)):
        verdict.wrong.append("an overrun was run again")


def nothing_limited_ran_twice(arena: Arena, verdict: Verdict) -> None:
    """Although the tasks waited in the worker for longer than a lease and the visibility timeout."""
    runs = Counter(task for task, _ in arena.applied().runs if "-limited" in task)
    if again := [task for task, count in runs.items() if count > 1]:
        verdict.wrong.append(f"run again while a worker held it: {', '.join(again)}")


def hung_workers_have_exited(arena: Arena, verdict: Verdict) -> None:
    """Each by its watchdog; the engine has restarted it."""
    for worker in arena.low_workers():
        said = str(arena.stack.docker.container.logs(worker))
        if "watchdog: this worker exits: its event loop has been blocked" not in said:
            verdict.wrong.append(f"{worker.name}: its watchdog has not logged that the worker exits")


FAULTS = (
    Fault(
        name="child-kill",
        what="Pool processes are killed with SIGKILL while they run a task.",
        watch="Overview, Failed runs: worker_lost; the tasks run again after 5 s.",
        inject=how.children_killed,
        redelivered=30,
    ),
    Fault(
        name="child-oom",
        what="Tasks use more memory than their container has; the kernel kills their process.",
        watch="Overview, Failed runs, and the restarts of worker-low (none: only the process is killed).",
        inject=how.out_of_memory,
        redelivered=60,
    ),
    Fault(
        name="worker-kill",
        what="A worker container is killed by its host PID; its messages are redelivered when their leases end.",
        watch="Overview, Consumers of low: down and up again; Unacknowledged stays up for 15 to 20 s.",
        inject=lambda arena: how.one_killed(arena, "worker-low"),
        resumed=REDELIVERED_WITHIN + LONG,  # all slots of the other one are busy
        redelivered=KILLED + LONG,
        busy=True,
        first="test",
    ),
    Fault(
        name="workers-kill",
        what="Every worker is killed at once.",
        watch="Overview, Consumers: 0; Backlog grows until they have restarted.",
        inject=lambda arena: how.killed(arena, "worker-low", "worker-high"),
        resumed=REDELIVERED_WITHIN + 3,  # to kill them takes up to 3 s
        redelivered=KILLED,
    ),
    Fault(
        name="worker-freeze",
        what="Every low worker is frozen for 20 s and continues.",
        watch="Overview, Targets down, Backlog; no task is run twice.",
        inject=lambda arena: how.frozen(arena, "worker-low"),
        lasts=20,
        redelivered=30,
    ),
    Fault(
        name="worker-doze",
        what="Every low worker is frozen for 70 s: when it continues, its tasks have exceeded their soft time limit.",
        watch="Overview, Backlog, Failed runs: the tasks are retried, and none fails.",
        inject=lambda arena: how.frozen(arena, "worker-low"),
        lasts=70,
        redelivered=70 + 2 * LONG,
        busy=True,
    ),
    Fault(
        name="warm-stop",
        what="The low workers are shut down by remote control; the engine restarts them.",
        watch="Overview, Consumers of low.",
        inject=lambda arena: how.controlled(arena, "shutdown"),
        redelivered=15,
    ),
    Fault(
        name="soft-stop",
        what="The low workers are stopped as in a deployment (SIGTERM), and started 5 s later.",
        watch="Overview, Backlog; tasks that could not end within 6 s run again at once.",
        inject=lambda arena: how.stopped(arena, "worker-low"),
        lasts=5,
        redelivered=40,
        busy=True,
        first="test-all",
    ),
    Fault(
        name="cold-stop",
        what="The low workers get SIGQUIT twice: they requeue all messages and exit at once.",
        watch="Overview, Consumers of low.",
        inject=how.cold_stop,
        redelivered=40,
        busy=True,
    ),
    Fault(
        name="scale",
        what="Low workers are scaled to 4, 1, 3 and 2 under load.",
        watch="Overview, Consumers of low, Slots.",
        inject=how.scaled,
        redelivered=80,
    ),
    Fault(
        name="redis-kill",
        what="The broker is killed; the engine restarts it, and it reads its AOF.",
        watch="Overview, Redis; workers and producer reconnect automatically.",
        inject=lambda arena: how.killed(arena, "redis"),
        recovered=BACK_AT_WORK,
        redelivered=KILLED,
        first="test",
    ),
    Fault(
        name="redis-restart",
        what="The broker is restarted.",
        watch="Overview, Redis.",
        inject=lambda arena: how.restarted(arena, "redis"),
        recovered=BACK_AT_WORK,
        redelivered=KILLED,
    ),
    Fault(
        name="redis-pause",
        what="The broker is frozen for 15 s: it accepts connections but does not reply.",
        watch="Overview, Redis, Publish failures; each try of a publisher times out after 3 s.",
        inject=lambda arena: how.frozen(arena, "redis"),
        lasts=15,
        recovered=BACK_AT_WORK,
        redelivered=KILLED,
        # A chord whose connection is new: each member waits 3 s for the declaration of its queue.
        blocked=14 if OUTBOX else PUBLISH_TAKES,
        first="test-all",
    ),
    Fault(
        name="worker-cut",
        what="The low workers' packets to and from the broker are dropped for 20 s.",
        watch="Overview, Backlog of low; afterwards they continue.",
        inject=worker_cut_off,
        lasts=20,
        redelivered=KILLED,
    ),
    Fault(
        name="publisher-cut",
        what="The publisher's packets to and from the broker are dropped for 20 s; its tasks are in the outbox.",
        watch="Overview, Arrival.",
        inject=publisher_cut_off,
        lasts=20,
        redelivered=15,
    ),
    Fault(
        name="worker-away",
        what="The low workers' packets to and from the broker are dropped for 100 s: others run their tasks.",
        watch="Overview, Consumers of low, Backlog; their tasks run again, without a second effect.",
        inject=worker_cut_off,
        lasts=100,
        redelivered=KILLED + 30,
        busy=True,
    ),
    Fault(
        name="worker-hung",
        what="The connections of the low workers to their queues receive no more packets: the workers hang, and exit.",
        watch="Overview, Consumers of low; make logs S=worker-low shows the watchdog's message.",
        inject=how.deafened,
        lasts=80,
        redelivered=KILLED + 30,
        check=hung_workers_have_exited,
        admin=True,
        busy=True,
    ),
    Fault(
        name="worker-deaf",
        what="The connections on which low workers wait for messages receive no more packets; they open new ones.",
        watch="Overview, Backlog of low: 15 s; the worker's log says that it drops a stale connection.",
        inject=lambda arena: how.deafened(arena, WAITS),
        lasts=20,
        recovered=BACK_AT_WORK,
        redelivered=KILLED + 30,
        admin=True,
    ),
    Fault(
        name="clients-kill",
        what="Every connection to the broker is closed, ten times.",
        watch="Overview, Redis, Connections.",
        inject=how.clients_killed,
        recovered=BACK_AT_WORK,
        redelivered=KILLED,
        admin=True,
    ),
    Fault(
        name="redis-full",
        what="The broker has reached maxmemory under a backlog, for 10 s, and refuses writes.",
        watch="Overview, Redis memory; the tasks are in the outbox.",
        inject=lambda arena: how.full(arena, "redis"),
        lasts=10,
        recovered=30,
        redelivered=KILLED,
        admin=True,
    ),
    Fault(
        name="results-away",
        what="redis-results is stopped for 15 s: no result, no effect, no task can be written.",
        watch="Overview, Redis; tasks are retried, publishers get an error.",
        inject=lambda arena: how.stopped(arena, "redis-results"),
        lasts=15,
        # Without the outbox a chord waits for the result backend: Celery tries 20 times, a second apart.
        blocked=PUBLISH_TAKES if OUTBOX else PUBLISH_TAKES + 15,
        redelivered=KILLED,
        first="test-all",
    ),
    Fault(
        name="broker-power",
        what="The broker has a power failure and loses its writes since the last fsync.",
        watch="Overview, Redis; lost messages are published again after 95 s.",
        inject=lambda arena: how.power_lost(arena, "redis"),
        redelivered=KILLED + 30,
        data_lost=True,
        admin=True,
    ),
    Fault(
        name="results-power",
        what="redis-results has a power failure and loses results, effects and tasks since the last fsync.",
        watch="Overview, Redis.",
        inject=lambda arena: how.power_lost(arena, "redis-results"),
        redelivered=REPUBLISHED,
        data_lost=True,
        admin=True,
        durable=True,
    ),
    Fault(
        name="broker-emptied",
        what="The broker has lost all data (FLUSHALL).",
        watch="Overview, Backlog: 0; the reconciler publishes tasks that have not ended.",
        inject=how.emptied,
        redelivered=KILLED + 30,
        busy=True,
        data_lost=True,
        admin=True,
    ),
    Fault(
        name="disk-full",
        what="The broker's disk is full for 10 s: it cannot write its AOF, and refuses writes.",
        watch="Overview, Redis.",
        inject=how.disk_full,
        lasts=10,
        recovered=30,
        redelivered=KILLED,
        admin=True,
        small_disk=True,
    ),
    Fault(
        name="beat-kill",
        what="Beat is killed; the engine restarts it, and it reads from its file what was sent.",
        watch="Overview, Beat.",
        inject=lambda arena: how.killed(arena, "beat"),
        beat=True,
        redelivered=15,
    ),
    Fault(
        name="two-beats",
        what="A second beat runs for 25 s with the same schedule.",
        watch="Overview, Arrival: periodic tasks are sent twice and run once.",
        inject=how.second_beat,
        beat=True,
        lasts=25,
        redelivered=15,
    ),
    Fault(
        name="producer-kill",
        what="The publisher is killed while it publishes.",
        watch="Overview, Arrival.",
        inject=how.publisher_killed,
        ends_publisher=True,
        redelivered=15,
    ),
    Fault(
        name="malformed",
        what=f"{len(malformed.kinds(1))} kinds of malformed message arrive.",
        watch="Overview; make dlq lists them.",
        inject=how.malformed_messages,
        redelivered=15,
        check=every_malformed_message_is_a_dead_letter,
        first="test",
    ),
    Fault(
        name="chord-kill",
        what="A worker is killed while it runs members of chords.",
        watch="Overview; the callbacks run when the leases of the members have ended.",
        inject=how.chord_members_killed,
        redelivered=KILLED + 10,
    ),
    Fault(
        name="eta-restart",
        what="Workers and broker are restarted while tasks wait for their ETA.",
        watch="Overview, Prefetched.",
        inject=how.delayed_over_a_restart,
        recovered=None,
        redelivered=KILLED + 15,
    ),
    Fault(
        name="rate-limit",
        what="Tasks wait in their workers for a rate limit, longer than a lease and the visibility timeout.",
        watch="Overview, Prefetched.",
        inject=how.rate_limited,
        redelivered=15,
        check=nothing_limited_ran_twice,
    ),
    Fault(
        name="overrun",
        what="Tasks exceed their time limits and ignore the soft one.",
        watch="Overview, Failed runs; make dlq lists them as 'hard time limit'.",
        inject=how.overrunning,
        redelivered=15,
        check=overruns_are_dead_letters,
    ),
)
