"""`make soak FOR=30m SEED=7`: injects random faults into a separate stack under load, then evaluates the ledger.

The seed determines the faults, their order, and the pauses between them, for the same list of faults; timing is random.
Tasks count as accepted once they are on the disk, because power failures of both Redis are among the faults.
"""

import re
import signal
import sys
import time
from collections import Counter
from random import Random
from subprocess import CalledProcessError

from python_on_whales.exceptions import DockerException

from faults.arena import (
    Arena,
    Fault,
    Publisher,
    at_the_right_moment,
    drain,
    healthy_again,
    inflict,
    load,
    own_stack,
    prepare,
    say,
)
from faults.ledger import Verdict
from faults.table import FAULTS
from stack.inside import InsideError
from stack.stack import Stack

PAUSE = (5.0, 20.0)  # s between two faults
CHOICES = [fault for fault in FAULTS if not fault.small_disk]


def seconds(name: str, text: str) -> float:
    """Seconds in `90s`, `30m` or `2h`, the value of a setting. Raises SystemExit."""
    match = re.fullmatch(r"(\d+)([smh])", text)
    if not match:
        raise SystemExit(f"{name}: a number with s, m or h, such as 30m; it is {text!r}")
    return int(match[1]) * {"s": 1.0, "m": 60.0, "h": 3600.0}[match[2]]


def number(text: str) -> int:
    """The seed. Raises SystemExit."""
    if not text.isdecimal():
        raise SystemExit(f"SEED: a whole number, such as 7; it is {text!r}")
    return int(text)


def soak(stack: Stack, lasts: float, seed: int) -> tuple[Verdict, Counter[str]]:
    """Inject faults for `lasts` seconds; returns the verdict on all tasks, and the number of each fault.

    A fault that could not be injected, or left a service unhealthy, is printed and counts as wrong; then the next one
    is injected.
    """
    random, counts, wrong, arena = Random(seed), Counter[str](), list[str](), Arena(stack)
    began = time.time()
    with load(arena, durable=True) as publisher:
        while time.time() < began + lasts:
            time.sleep(random.uniform(*PAUSE))
            fault = random.choice(CHOICES)
            try:
                wrong += one(arena, publisher, fault)
            except (AssertionError, CalledProcessError, DockerException, InsideError) as error:
                say(f"WRONG: {fault.name}: {error}")
                wrong.append(f"{fault.name}: {str(error).splitlines()[-1]}")
            else:
                counts[fault.name] += 1
        over = time.time()
        publisher.stop()
        say("publishing has ended; waiting for the remaining tasks")
        verdict = Verdict("soak", 0, 0, 0, left=drain(arena, publisher), wrong=wrong)
        verdict.judge(publisher.submitted(), arena.applied(), began, over, over)
    verdict.dead = len(arena.dead_letters())
    return verdict, counts


def one(arena: Arena, publisher: Publisher, fault: Fault) -> list[str]:
    """Inject a fault, and wait until the stack is healthy; returns what is not."""
    at_the_right_moment(arena, publisher, fault)
    say(f"{fault.name}: {fault.what}")
    inflict(arena, publisher, fault)
    return healthy_again(arena.stack)


def main(arguments: list[str]) -> int:
    """Run it; exit code 1 if a task was lost or applied twice, a message is still held, or a fault failed."""
    lasts, seed = seconds("FOR", arguments[0]), number(arguments[1])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print(f"soak: FOR={arguments[0]} SEED={seed}")
    with own_stack() as stack:
        prepare(stack)
        verdict, counts = soak(stack, lasts, seed)
    print(f"\n{sum(counts.values())} faults: " + ", ".join(f"{name} {count}" for name, count in counts.most_common()))
    print(f"{verdict.submitted} tasks submitted, {verdict.again} run again, {verdict.dead} dead letters")
    print(f"{verdict.raised} publishes raised, the longest took {verdict.blocked:.1f} s")
    print(f"{verdict.gap:.1f} s the longest time without an effect")
    print("".join(f"WRONG: {each}\n" for each in verdict.wrong), end="")
    print(f"lost {verdict.lost}, applied twice {verdict.twice}, messages not requeued {verdict.left}")
    return 1 if verdict.lost or verdict.twice or verdict.left or verdict.wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
