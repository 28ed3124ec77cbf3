"""`make soak FLEET=mixed FOR=60m SEED=7`: moves workers from Celery's own transport to the atomic one, and back.

On the stack and with the tasks of faults/kills.py: one worker after another is stopped warm, and its place taken. Stock
workers run faults/peer.py, Celery without the library. A program of the same kind publishes all the time, beside one
with the library, which uses the atomic transport while there are atomic workers. Every KILLS one of these is killed;
not a stock worker, which can lose tasks then.
"""

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable

from python_on_whales import Container

from faults.arena import say
from faults.kills import CONTAINERS, POOLS, Services, Soak, node, report, small_workers, stack_of, times, wait_until
from faults.runs import Run
from stack.stack import ROOT, Stack

PHASES = ("all workers are stock", "moving over", "all workers are atomic", "moving back", "all are stock again")
OVER, BACK = 1, 3  # of the phases
WORKERS = CONTAINERS * len(POOLS)
RATE = 50  # tasks per second of each publisher: stock workers run about 100 on two cores

PEER = f"{ROOT}/tests/faults/peer.py:/app/celery_app.py:ro"
SERVICES: Services = {
    # SIGTERM: Celery's warm shutdown, and not what REMAP_SIGTERM of the image makes of it
    **small_workers("stock", volumes=[PEER], environment={"PEER": "celery", "REMAP_SIGTERM": ""}),
    **small_workers("atomic", environment={"TRANSPORT": "atomic"}),
}
PUBLISHERS = ("Celery", "ours, stock", "ours, atomic", "ours, stock")  # in the order of their start
NUMBERS = 100_000_000  # of the tasks of each

SHORTEST = 600  # s: an atomic worker takes up to 10 s to stop, and each phase has to end before the next begins
KILLED = 137  # exit code


class Fleet(Soak):
    """Pairs of a stock and an atomic worker, of which one runs."""

    def __init__(self, stack: Stack, seed: int) -> None:
        super().__init__(stack, seed)
        self._stock, self._atomic = self.workers("stock"), self.workers("atomic")
        self.stock_nodes = {*map(node, self._stock)}
        self._moved: list[Container] = []  # the atomic workers that run

    def run(self, every: float, lasts: float) -> None:
        """All phases."""
        for worker in self._stock:
            worker.start()
        self.publish(RATE, options=[f"--volume={PEER}", "--env=PEER=celery"])
        self._ours = self.publish(RATE, NUMBERS, ["--env=TRANSPORT=stock"])
        self.wait_for_a_run()
        began = time.time()
        for when, step, number in timetable(lasts, every):
            wait_until(began + when)
            step(self, number)
        wait_until(began + lasts)

    def announce(self, phase: int) -> None:
        """Print that a phase begins."""
        self.say(f"{phase + 1}. {PHASES[phase]}")

    def move_over(self, number: int) -> None:
        """Move a worker. Our publisher follows the first one: stock workers do not see what it then delays."""
        self._replace(self._stock[number], self._atomic[number])
        self._moved.append(self._atomic[number])
        if number == 0:
            self._publish_with("atomic", 2 * NUMBERS)

    def move_back(self, number: int) -> None:
        """Move a worker. Our publisher precedes the last one; then nobody moves what is delayed, so it is given up."""
        if number == WORKERS - 1:
            self._publish_with("stock", 3 * NUMBERS)
        self._moved.remove(self._atomic[number])
        self._replace(self._atomic[number], self._stock[number])
        if number == WORKERS - 1:
            self._give_up()

    def kill_one(self, _: int) -> None:
        """Kill a random atomic worker, if there is one."""
        if self._moved:
            self.kill(self.random.choice(self._moved))

    def _replace(self, old: Container, new: Container) -> None:
        old.stop()
        if old.state.exit_code == KILLED:
            self.wrong.append(f"{self.name(old)} did not stop in time, and was killed")
        new.start()
        self.say(f"started {self.name(new)}")

    def _publish_with(self, transport: str, first: int) -> None:
        self.stop(self._ours)
        self._ours = self.publish(RATE, first, [f"--env=TRANSPORT={transport}"])
        say(f"our publisher: {transport}")

    def _give_up(self) -> None:
        command = [*self.stack.compose_command, "run", "--rm", "--no-deps", "--no-TTY", "client"]
        command += ["python", "-m", "celery_durable", "-A", "celery_app", "delayed", "give-up", "--all"]
        done = subprocess.run(command, capture_output=True, text=True)
        say(f"delayed give-up --all: {len(done.stdout.splitlines())} messages")


Step = Callable[[Fleet, int], None]


def timetable(lasts: float, every: float) -> list[tuple[float, Step, int]]:
    """What is done when (s since the start), and the number of the phase, the worker or the kill."""
    phase = lasts / len(PHASES)
    phases = [(number * phase, Fleet.announce, number) for number in range(len(PHASES))]
    moves = [
        (phase * (start + number / WORKERS), move, number)
        for start, move in ((OVER, Fleet.move_over), (BACK, Fleet.move_back))
        for number in range(WORKERS)
    ]
    kills = [(turn * every, Fleet.kill_one, turn) for turn in range(1, int(lasts / every) + 1)]
    return sorted([*phases, *moves, *kills], key=lambda each: each[0])


def delayed(runs: Iterable[Run], stock: set[str]) -> dict[str, object]:
    """How many delayed tasks of each publisher ran on which workers, without those that were delayed by a retry."""
    first = (run for run in runs if run.due and not run.attempt)
    found = Counter((PUBLISHERS[run.number // NUMBERS], run.worker in stock) for run in first)
    return {
        f"delayed by {name}": f"{found[name, True]} run by stock workers, {found[name, False]} by atomic ones"
        for name in dict.fromkeys(PUBLISHERS)
    }


def main(arguments: list[str]) -> int:
    """Run it; exit code 1 if something is wrong."""
    every, lasts, seed = times(arguments)
    if lasts < SHORTEST:
        raise SystemExit(f"FOR: at least {SHORTEST // 60}m with FLEET=mixed; it is {arguments[1]}")
    with stack_of(SERVICES) as stack:
        fleet = Fleet(stack, seed)
        fleet.run(every, lasts)
        figures, runs = fleet.end()
    print("\n" + report({**figures, **delayed(runs, fleet.stock_nodes)}, fleet.wrong))
    return 1 if fleet.wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
