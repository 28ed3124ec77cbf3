"""What `make bench` and `make bench-quick` measure: for each measurement its contenders, and how often."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Run:
    """One measurement. In each round the contenders take turns: A B A B. A round before the first one warms up."""

    measurement: str
    contenders: tuple[str, ...]
    rounds: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The sizes of samples, and the runs."""

    seconds: float  # that a drain takes about; its number of tasks follows from the rate of the warm-up
    enqueued: int  # publishes in a sample
    latencies: int  # tasks in a sample
    runs: tuple[Run, ...]


def each(pools: str, *names: str) -> tuple[str, ...]:
    """The names of contenders with these pools."""
    return tuple(f"{name} {pool}" for pool in pools.split() for name in names)


PEERS = ("dramatiq 8 threads", "dramatiq 16 threads", "taskiq", "rq")
PUBLISHERS = (*each("prefork", "stock", "plus", "atomic", "atomic batch"), "dramatiq 8 threads", "taskiq", "rq")
EFFECTS = each("prefork", "effect early", "effect", "effect once", "effect outbox", "effect both")

# Each kind of sample, small and once: does the suite work?
TRIAL = Plan(
    seconds=0.2,
    enqueued=100,
    latencies=40,
    runs=(
        Run(measurement="drain", contenders=("stock prefork", "atomic solo", "dramatiq 8 threads"), rounds=1),
        Run(measurement="enqueue", contenders=("stock prefork", "atomic prefork"), rounds=1),
        Run(measurement="latency", contenders=("stock prefork", "atomic prefork"), rounds=1),
        Run(measurement="due", contenders=("atomic delayed prefork",), rounds=1),
    ),
)
QUICK = Plan(
    seconds=1.5,
    enqueued=1500,
    latencies=150,
    runs=(
        Run(
            measurement="drain",
            contenders=(
                *each("prefork solo", "stock", "atomic"),
                "atomic tuned prefork",
                *each("solo", "atomic tuned", "plus"),
                *PEERS[:3],
            ),
            rounds=3,
        ),
        Run(measurement="enqueue", contenders=PUBLISHERS, rounds=3),
        Run(measurement="latency", contenders=each("prefork", "stock", "atomic"), rounds=2),
    ),
)
FULL = Plan(
    seconds=3,
    enqueued=4000,
    latencies=300,
    runs=(
        Run(
            measurement="drain",
            contenders=(
                *each("prefork solo threads", "stock", "stock tuned", "plus", "plus tuned", "library stock"),
                *each("prefork solo threads", "atomic", "atomic tuned"),
                *PEERS,
            ),
            rounds=5,
        ),
        Run(
            measurement="options",
            contenders=(
                *each("prefork solo threads", "stock", "stock late", "stock events"),
                *each("prefork solo threads", "plus", "plus late", "plus events"),
                *each("prefork solo threads", "atomic", "atomic early", "atomic events", "atomic metrics"),
            ),
            rounds=3,
        ),
        Run(measurement="protections", contenders=EFFECTS, rounds=3),
        Run(
            measurement="enqueue",
            contenders=(*PUBLISHERS, *each("prefork", "effect outbox", "effect outbox apart")),
            rounds=5,
        ),
        Run(
            measurement="latency",
            contenders=(*each("prefork solo", "stock", "plus", "atomic"), *PEERS[:3]),
            rounds=4,
        ),
        Run(
            measurement="due",
            contenders=(*each("prefork", "stock", "plus", "atomic delayed"), *each("prefork solo threads", "atomic")),
            rounds=2,
        ),
        Run(
            measurement="isolation",
            contenders=(*each("prefork", "stock priorities", "atomic priorities"), "stock queues", "atomic queues"),
            rounds=2,
        ),
        Run(
            measurement="delayed",
            contenders=(*each("prefork solo", "atomic"), *each("prefork solo", "atomic delayed")),
            rounds=5,
        ),
        Run(measurement="idle", contenders=("stock 16", "plus 16", "atomic 16"), rounds=2),
        Run(measurement="memory", contenders=each("prefork solo threads", "atomic"), rounds=1),
    ),
)
PLANS = {"trial": TRIAL, "quick": QUICK, "full": FULL}
