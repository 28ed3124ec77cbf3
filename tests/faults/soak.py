"""`make soak FOR=30m SEED=7`: one random fault after another on a stack of its own, under load; then the ledger judges.

The seed decides which faults come, in which order, and how long the pauses between them are; chance does the rest, and
another list of faults gives other orders. Tasks count as accepted once they are on
the disk, since the broker and redis-results lose their power, too.
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


def seconds(text: str) -> float:
    """Of `90s`, `30m` or `2h`. Raises SystemExit."""
    match = re.fullmatch(r"(\d+)([smh])", text)
    if not match:
        raise SystemExit(f"FOR: a number with s, m or h, such as 30m; it is {text!r}")
    return int(match[1]) * {"s": 1.0, "m": 60.0, "h": 3600.0}[match[2]]


def number(text: str) -> int:
    """The seed. Raises SystemExit."""
    if not text.isdecimal():
        raise SystemExit(f"SEED: a whole number, such as 7; it is {text!r}")
    return int(text)


def soak(stack: Stack, lasts: float, seed: int) -> tuple[Verdict, Counter[str]]:
    """Faults for so long; the verdict on all tasks, and how often each fault came.

    A fault that did not come about or left something unwell is said, is wrong, and the next one comes.
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
        say("no more tasks; those that are under way come to their end")
        verdict = Verdict("soak", 0, 0, 0, left=drain(arena, publisher), wrong=wrong)
        verdict.judge(publisher.submitted(), arena.applied(), began, over, over)
    verdict.dead = len(arena.dead_letters())
    return verdict, counts


def one(arena: Arena, publisher: Publisher, fault: Fault) -> list[str]:
    """A fault, and what it has ended is there again; what is not."""
    at_the_right_moment(arena, publisher, fault)
    say(f"{fault.name}: {fault.what}")
    inflict(arena, publisher, fault)
    return healthy_again(arena.stack)


def main(arguments: list[str]) -> int:
    """Run it; exit code 1 when a task was lost or applied twice, a message is held, or a fault did not come about."""
    lasts, seed = seconds(arguments[0]), number(arguments[1])
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
    print(f"lost {verdict.lost}, applied twice {verdict.twice}, messages not given back {verdict.left}")
    return 1 if verdict.lost or verdict.twice or verdict.left or verdict.wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
