"""What is compared: one entry each, with its worker processes and its settings.

Every contender has two processes that run tasks, unless its note says otherwise, no result backend, and the Python and
the redis-py of the stack's image. Nothing else differs from a contender's defaults than what its entry names.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from json import dumps
from typing import Any

WORKER = "celery -A bench.apps.celery_app worker"
POOLS = {
    "prefork": (f"{WORKER} --concurrency=2",),
    "solo": (f"{WORKER} --pool=solo",) * 2,
    "threads": (f"{WORKER} --pool=threads --concurrency=8",) * 2,
}
OWN_QUEUES = (f"{WORKER} --queues=high --concurrency=2", f"{WORKER} --queues=low --concurrency=2")


@dataclass(frozen=True, kw_only=True)
class CeleryApp:
    """The options of bench/apps/celery_app.py."""

    settings: dict[str, Any] = field(default_factory=dict)  # Celery's
    library: dict[str, Any] | None = None  # fields of celery_durable.Config; None: without the library
    metrics: bool = False  # the library's extra `metrics` is installed
    task: dict[str, Any] = field(default_factory=dict)  # options of the no-op task
    batch: bool = False  # publish within durable.batch()
    effect: str = ""  # of the no-op task: "", "plain": one INCR, "once": the same with a done marker
    urgent: dict[str, Any] = field(default_factory=dict)  # options of the publish of a task that measures its latency
    patient: dict[str, Any] = field(default_factory=dict)  # and of a task that takes time


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A system with its settings."""

    name: str
    app: str  # a module of bench.apps
    workers: tuple[str, ...]  # commands
    note: str  # for the reader
    options: CeleryApp | None = None
    processes: int = 2  # that run tasks
    delayed: int = 0  # messages that wait for their ETA meanwhile

    @property
    def variables(self) -> dict[str, str]:
        """Of its processes' environment."""
        if self.options is None:
            return {}
        # The library's workers refuse to start if SIGTERM does not start a soft shutdown.
        library = {} if self.options.library is None else {"REMAP_SIGTERM": "SIGQUIT"}
        return {"BENCH_APP": dumps(asdict(self.options)), **library}


def celery(name: str, note: str, *pools: str, flags: str = "", delayed: int = 0, **options: Any) -> Iterator[Contender]:
    """A Celery app, with each of the pools."""
    for pool in pools or POOLS:
        yield Contender(
            name=f"{name} {pool}",
            app="celery_app",
            workers=tuple(f"{command} {flags}".strip() for command in POOLS[pool]),
            note=note,
            options=CeleryApp(**options),
            delayed=delayed,
        )


def several(name: str, note: str, workers: tuple[str, ...], processes: int, **options: Any) -> Contender:
    """A Celery app with workers of its own."""
    app = CeleryApp(**options)
    return Contender(name=name, app="celery_app", workers=workers, note=note, options=app, processes=processes)


ATOMIC = {"transport": "atomic"}  # celery_durable.Config
APART = {**ATOMIC, "store": "redis://localhost:6379/2"}
PLUS = {"broker_transport": "celery_redis_plus.transport:Transport"}
EARLY = {"acks_late": False}  # an option of the task: the library refuses it as a setting of the app
LATE, SENT = {"task_acks_late": True}, {"task_send_sent_event": True}
BARE = "--prefetch-multiplier=64 --without-gossip --without-mingle --without-heartbeat"
PRIORITIES: dict[str, Any] = {"urgent": {"priority": 0}, "patient": {"priority": 9}}
QUEUES: dict[str, Any] = {"urgent": {"queue": "high"}, "patient": {"queue": "low"}}
RQ = "rq worker --worker-class rq.worker.SimpleWorker --quiet --path /bench --url redis://localhost:6379 bench"

ALL = (
    # Stock Celery: early acknowledgement and a prefetch of 4 are its defaults.
    *celery("stock", "Celery as installed: acknowledges before it runs, prefetch 4"),
    *celery(
        "stock tuned",
        "prefetch 64; without gossip, mingle, heartbeat, rate limits",
        flags=BARE,
        settings={"worker_disable_rate_limits": True},
    ),
    *celery("stock late", "acknowledges when done", settings=LATE),
    *celery("stock events", "events on, as Flower needs them", flags="--task-events", settings=SENT),
    # celery-redis-plus.
    *celery("plus", "celery-redis-plus as installed: acknowledges before it runs, prefetch 4", settings=PLUS),
    *celery(
        "plus tuned",
        "prefetch 64; without gossip, mingle, heartbeat, rate limits",
        flags=BARE,
        settings={**PLUS, "worker_disable_rate_limits": True},
    ),
    *celery("plus events", "events on", flags="--task-events", settings={**PLUS, **SENT}),
    *celery("plus late", "acknowledges when done", settings={**PLUS, **LATE}),
    # celery-durable: late acknowledgement and a prefetch of 1 are its defaults.
    *celery("library stock", "celery-durable with kombu's transport", library={"transport": "stock"}),
    *celery("atomic", "celery-durable, transport atomic: acknowledges when done, prefetch 1", library=ATOMIC),
    *celery("atomic tuned", "prefetch 64", flags="--prefetch-multiplier=64", library=ATOMIC),
    *celery("atomic early", "acknowledges before it runs", library=ATOMIC, task=EARLY),
    *celery("atomic events", "events on", flags="--task-events", library=ATOMIC, settings=SENT),
    *celery("atomic metrics", "with the extra `metrics`", library=ATOMIC, metrics=True),
    *celery("atomic batch", "publishes in a batch", "prefork", library=ATOMIC, batch=True),
    *celery("atomic delayed", "a million messages wait for their ETA", library=ATOMIC, delayed=1_000_000),
    # A task with an effect, the same INCR, without and with each protection.
    *celery("effect early", "acknowledges before it runs", "prefork", library=ATOMIC, effect="plain", task=EARLY),
    *celery("effect", "acknowledges when done", "prefork", library=ATOMIC, effect="plain"),
    *celery("effect once", "with a done marker", "prefork", library=ATOMIC, effect="once"),
    *celery("effect outbox", "in the outbox", "prefork", library=ATOMIC, effect="plain", task={"outbox": True}),
    *celery(
        "effect outbox apart",
        "in the outbox of another database",
        "prefork",
        library=APART,
        effect="plain",
        task={"outbox": True},
    ),
    *celery("effect both", "outbox, done marker", "prefork", library=ATOMIC, effect="once", task={"outbox": True}),
    # Where an urgent task meets many others: one worker and two priorities, or a worker for each of two queues.
    *celery("stock priorities", "one worker; priority 0 and 9", "prefork", **PRIORITIES),
    *celery("atomic priorities", "one worker; priority 0 and 9", "prefork", library=ATOMIC, **PRIORITIES),
    several("stock queues", "two queues, a worker for each", OWN_QUEUES, 4, **QUEUES),
    several("atomic queues", "two queues, a worker for each", OWN_QUEUES, 4, library=ATOMIC, **QUEUES),
    # Many workers that wait for messages.
    several("stock 16", "16 solo workers", POOLS["solo"] * 8, 16),
    several("plus 16", "16 solo workers", POOLS["solo"] * 8, 16, settings=PLUS),
    several("atomic 16", "16 solo workers", POOLS["solo"] * 8, 16, library=ATOMIC),
    # Other systems. Each acknowledges when done, or keeps the message until then.
    *(
        Contender(
            name=f"dramatiq {threads} threads",
            app="dramatiq_app",
            workers=(f"dramatiq bench.apps.dramatiq_app --processes 2 --threads {threads}",),
            note=note,
        )
        for threads, note in ((8, "its default number of threads"), (16, "more than its default of 8 threads"))
    ),
    Contender(
        name="taskiq",
        app="taskiq_app",
        workers=(
            "taskiq worker bench.apps.taskiq_app:broker --workers 2 --max-prefetch 100 --no-parse --log-level WARNING",
        ),
        note="Redis stream, reads 100 messages at once, does not validate arguments",
    ),
    Contender(name="rq", app="rq_app", workers=(RQ, RQ), note="SimpleWorker: no fork for each job"),
)
CONTENDERS = {each.name: each for each in ALL}
