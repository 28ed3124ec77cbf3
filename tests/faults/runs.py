"""The ledger of `make soak KILLS=…`: every run of every task, compared with what was submitted and who was killed."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import groupby
from sys import intern
from typing import NamedTuple

ACKNOWLEDGED_WITHIN = 5  # s after its end; a task that ended longer before its worker was killed must not run again
ROUNDED = 0.001  # s by which a time in the ledger may be too small

# What may be in the broker when nothing is left to do.
EXPECTED_KEYS = (
    "_kombu.binding*",
    "celery-durable:workers",
    # atomic: who waits for messages, who moves those that are due, and when a worker last looked for lapsed leases
    "celery-durable:leases",
    "celery-durable:watcher:*",
    "celery-durable:waiting:*",
    "celery-durable:wake:*",
    "celery-durable:mover:*",
    # stock: the lock of who looks for messages past the visibility timeout
    "unacked_mutex",
)


class Run(NamedTuple):
    """A line of the ledger; the order of the fields is that of `judge`."""

    number: int  # of the task
    attempt: int  # 0: the first
    began: float  # epoch s
    ended: float
    worker: str
    redelivered: bool
    last: bool  # not retried
    due: float = 0  # epoch s; 0: at once

    @classmethod
    def read(cls, line: str) -> "Run":
        """A line that chaos/ledger.py wrote."""
        number, attempt, began, ended, worker, *flags, due = line.split()
        redelivered, last = (flag == "True" for flag in flags)
        return cls(int(number), int(attempt), float(began), float(ended), intern(worker), redelivered, last, float(due))


class Kill(NamedTuple):
    """A worker that was killed between two times (epoch s)."""

    worker: str
    sent: float
    gone: float


@dataclass
class Judged:
    """What the ledger says."""

    applied: int = 0  # tasks
    lost: list[int] = field(default_factory=list)
    redelivered: int = 0  # runs
    attributed: int = 0  # runs beyond the first of an attempt, each after a kill of the worker of an earlier one
    unattributed: list[int] = field(default_factory=list)  # tasks with other runs
    unknown: list[int] = field(default_factory=list)  # tasks that nobody submitted
    early: list[int] = field(default_factory=list)  # tasks that ran before their ETA


def judge(submitted: set[int], uncertain: set[int], runs: list[Run], kills: Iterable[Kill]) -> Judged:
    """Compare the runs, which this sorts. `uncertain`: their publish raised, so they may run, and also twice."""
    killed: dict[str, list[Kill]] = {}
    for kill in kills:
        killed.setdefault(kill.worker, []).append(kill)
    found, missing = Judged(redelivered=sum(run.redelivered for run in runs)), set(submitted)
    runs.sort()
    for number, of_task in groupby(runs, key=lambda run: run.number):
        if number not in submitted:
            if number not in uncertain:
                found.unknown.append(number)
            continue
        messages = 1
        for _, attempt in groupby(of_task, key=lambda run: run.attempt):
            runs_of_attempt = list(attempt)
            if any(run.began + ROUNDED < run.due for run in runs_of_attempt):
                found.early.append(number)
            more = len(runs_of_attempt) - messages
            interrupted = sum(_interrupted(run, killed.get(run.worker, [])) for run in runs_of_attempt[:-1])
            found.attributed += max(0, min(more, interrupted))
            if more > interrupted:
                found.unattributed.append(number)
            if runs_of_attempt[0].last:
                missing.discard(number)
            messages = len(runs_of_attempt)  # each run may have published the retry
    found.applied, found.lost = len(submitted) - len(missing), sorted(missing)
    return found


def _interrupted(run: Run, kills: list[Kill]) -> bool:
    """Whether the worker was killed during the run, or before it can be expected to have acknowledged it."""
    return any(run.began <= kill.gone and kill.sent <= run.ended + ACKNOWLEDGED_WITHIN for kill in kills)


def left_over(keys: Iterable[str]) -> Iterator[str]:
    """The keys of the broker that are not expected once everything is done."""
    return (key for key in keys if not any(fnmatchcase(key, pattern) for pattern in EXPECTED_KEYS))
