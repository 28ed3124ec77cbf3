"""The ledger: compares every submitted task with every applied effect."""

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from operator import itemgetter
from pathlib import Path

from stack import inside as run
from stack.inside import Inside


@dataclass
class Submitted:
    """The contents of the publisher's log."""

    begun: dict[str, float] = field(default_factory=dict)  # task: epoch s
    accepted: dict[str, float] = field(default_factory=dict)
    raised: int = 0  # calls
    blocked: float = 0.0  # s, the longest call

    @classmethod
    def read(cls, log: Path) -> "Submitted":
        """Read a log that may still grow."""
        found = cls()
        lines = log.read_text().splitlines() if log.exists() else []
        for kind, task, time, *rest in (line.split() for line in lines):
            match kind:
                case "begun":
                    found.begun[task] = float(time)
                case "accepted":
                    found.accepted[task] = float(time)
                    found.blocked = max(found.blocked, float(rest[0]))
                case "raised":
                    found.raised += 1
                    found.blocked = max(found.blocked, float(rest[0]))
        return found

    def published_since(self, time: float) -> int:
        """Tasks accepted since then."""
        return sum(at >= time for at in self.accepted.values())


@dataclass
class Applied:
    """The runs and effects that the tasks have recorded."""

    runs: list[tuple[str, float]]  # (task, epoch s)
    effects: list[tuple[str, float]]

    @classmethod
    def read(cls, inside: Inside, prefix: str) -> "Applied":
        """Read those of the tasks with this prefix."""

        def lines(key: str) -> list[tuple[str, float]]:
            found = (line.rsplit(" ", 1) for line in inside.call(run.results_redis, "LRANGE", key, 0, -1))
            return [(task, float(time)) for task, time in found if task.startswith(f"{prefix}-")]

        return cls(lines("ledger:runs"), lines("ledger:effects"))

    def executing(self) -> set[str]:
        """Tasks that have started and are not applied, except those that never will be."""
        return {task for task, _ in self.runs if "-doomed" not in task} - {task for task, _ in self.effects}


@dataclass
class Verdict:
    """One row of the table."""

    fault: str
    executing: int  # at the moment of the fault
    held: int  # taken by a worker and not running
    published: int  # in the second before
    submitted: int = 0
    raised: int = 0  # publishes that raised
    lost: int = 0
    twice: int = 0  # effects applied more than once
    again: int = 0  # runs beyond the first
    dead: int = 0  # dead letters
    left: int = 0  # messages that are still unacknowledged at the end
    gap: float = 0.0  # s, the longest without an effect while tasks were published
    resumed: float = 0.0  # s from the fault until the last of the tasks that it interrupted has begun again
    redelivered: float = 0.0  # s from the fault until the last task that was running then or run again was applied
    recovered: float = 0.0  # s from the end of the fault until the first new effect
    blocked: float = 0.0  # s, the longest that a publish took
    wrong: list[str] = field(default_factory=list)  # what did not hold

    def judge(self, submitted: Submitted, applied: Applied, begun: float, over: float, stopped: float) -> None:
        """Fill in the results: the fault was from `begun` to `over`, tasks were published until `stopped` (epoch s)."""
        effects, runs = Counter(task for task, _ in applied.effects), Counter(task for task, _ in applied.runs)
        first = dict(reversed(applied.effects))
        self.submitted, self.raised = len(submitted.begun), submitted.raised
        self.lost = len(submitted.accepted.keys() - effects.keys())
        self.twice = sum(count > 1 for count in effects.values())
        self.again = sum(count - 1 for count in runs.values())
        times = sorted(time for time in first.values() if time <= stopped)
        self.gap = max((later - earlier for earlier, later in pairwise(times)), default=0.0)
        interrupted = {
            task
            for task, time in applied.runs
            if (time <= begun < first.get(task, begun)) or (time <= over and runs[task] > 1)
        }
        starts: dict[str, list[float]] = {}
        for task, time in sorted(applied.runs, key=itemgetter(1)):
            starts.setdefault(task, []).append(time)
        again = [
            min(after) - begun
            for start, *later in starts.values()
            if start <= over and (after := [time for time in later if time > begun])
        ]
        self.resumed = max(again, default=0.0)
        # If redis-results has lost effects, the first that it still has may be older than the fault.
        self.redelivered = max([0.0, *(first[task] - begun for task in interrupted if task in first)])
        # Tasks that workers held already may start without the broker: the next one comes from a queue.
        after = sorted(time - over for _, time in applied.runs if time >= over)[self.executing + self.held :]
        self.recovered = after[0] if after else float("inf")
        self.blocked = submitted.blocked

    def sentence(self) -> str:
        """The result in one line."""
        figures = (
            f"{self.submitted} tasks submitted, {self.lost} lost, {self.twice} applied twice, {self.again} run again, "
            f"{self.dead} dead letters; recovered after {self.recovered:.1f} s, interrupted tasks done after "
            f"{self.redelivered:.1f} s, longest publish {self.blocked:.1f} s"
        )
        return "; ".join([figures, *(f"WRONG: {each}" for each in self.wrong)])
