"""The rule of leases, checked in every state of a model: two workers, one message, freezes and kills in any order.

The model's step is a second. As in leases.py and lapsed.lua: a worker renews every RENEWAL, also after an outage of
Redis ends, within a second; each second some worker looks for a lapsed lease; after a gap of GAP without any look
nothing lapses for GRACE. The times are scaled down, so that all states can be visited; Config's inequalities hold.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import permutations

LEASE, RENEWAL = 6, 2
GAP, GRACE = LEASE - 2 * RENEWAL, 2 * RENEWAL
CAP = LEASE + 2  # ages beyond this are alike


@dataclass(frozen=True)
class Worker:
    """`due`: s until it renews; `holds`: it believes that it holds the message; `steady`: it was never frozen since."""

    state: str = "runs"  # or "frozen", "killed"
    due: int = RENEWAL
    holds: bool = False
    steady: bool = True


@dataclass(frozen=True)
class World:
    """`holder`: in the books of Redis; `age`: s since the last renewal; `unseen`: s since the last look for lapsed
    ones; `hold`: s for which nothing lapses."""

    workers: tuple[Worker, Worker] = (Worker(), Worker())
    up: bool = True
    holder: int | None = None
    age: int = 0
    unseen: int = 0
    hold: int = 0


class WronglyLapsedError(Exception):
    """A worker that has renewed all the time lost its message."""


def with_worker(world: World, number: int, **changes: object) -> World:
    workers = list(world.workers)
    workers[number] = replace(workers[number], **changes)  # type: ignore[arg-type]
    return replace(world, workers=(workers[0], workers[1]))


def calls(world: World, number: int) -> World:
    """What the thread of a worker does once a second: renew, if it is time, and look."""
    worker = world.workers[number]
    if worker.due == 0:
        if world.holder == number and worker.holds:
            world = replace(world, age=0)
        world = with_worker(world, number, due=RENEWAL)
    hold = GRACE if world.unseen > GAP else world.hold
    world = replace(world, unseen=0, hold=hold)
    if hold == 0 and world.holder is not None and world.age >= LEASE:
        holder = world.workers[world.holder]
        if holder.state == "runs" and holder.holds and holder.steady:
            raise WronglyLapsedError(world)
        world = replace(world, holder=None)
    return world


def a_second(world: World) -> Iterator[World]:
    """Time passes; the workers call in any order."""
    world = replace(
        world,
        age=min(world.age + 1, CAP),
        unseen=min(world.unseen + 1, CAP),
        hold=max(world.hold - 1, 0),
    )
    for number, worker in enumerate(world.workers):
        if worker.state == "runs":
            world = with_worker(world, number, due=max(worker.due - 1, 0))
    if not world.up:
        yield world
        return
    running = [number for number, worker in enumerate(world.workers) if worker.state == "runs"]
    for order in permutations(running):
        after = world
        for number in order:
            after = calls(after, number)
        yield after


def steps(world: World) -> Iterator[World]:
    """Everything that can happen next."""
    yield from a_second(world)
    yield replace(world, up=not world.up)
    for number, worker in enumerate(world.workers):
        if worker.state == "runs":
            yield with_worker(world, number, state="frozen", steady=False)
            yield with_worker(world, number, state="killed", holds=False)
            if world.up and world.holder is None and not worker.holds:  # fetch.lua
                taken = replace(world, holder=number, age=0)
                yield with_worker(taken, number, holds=True, steady=True)
            if world.up and worker.holds:  # an acknowledgement, late if another one holds it
                done = replace(world, holder=None) if world.holder == number else world
                yield with_worker(done, number, holds=False)
        elif worker.state == "frozen":
            yield with_worker(world, number, state="runs")


@cache
def states() -> set[World]:
    """All states that can be reached."""
    found, left = {World()}, [World()]
    while left:
        for after in steps(left.pop()):
            if after not in found:
                found.add(after)
                left.append(after)
    return found


def test_a_worker_that_renews_never_loses_its_message() -> None:
    """Also when Redis was frozen for any time. `calls` raises the error."""
    assert len(states()) > 200_000


def test_a_killed_workers_message_returns_in_time() -> None:
    """While Redis answers and another worker runs."""
    for world in states():
        if world.holder is None or world.workers[world.holder].state != "killed" or not world.up:
            continue
        if "runs" not in {worker.state for worker in world.workers}:
            continue
        ahead = {world}
        for _ in range(GRACE + LEASE + 1):
            ahead = {after for each in ahead if each.holder is not None for after in a_second(each)}
        assert not any(each.holder is not None for each in ahead), world


def test_without_the_grace_a_worker_loses_its_message_when_redis_was_frozen() -> None:
    """The model is not blind to it."""
    world = World()
    world = with_worker(replace(world, holder=0), 0, holds=True)
    for _ in range(CAP):
        world = next(a_second(replace(world, up=False)))
    world = replace(world, up=True, unseen=0)  # as if there had been looks
    lost = 0
    for number in (0, 1):
        try:
            calls(with_worker(world, 0, due=1), number)
        except WronglyLapsedError:
            lost += 1
    assert lost == 2
