"""The rule of delays, checked in every state of a model: two workers and one message with an ETA.

Each step is one of the scripts of atomic/scripts, or time that passes. A message that a publisher has not delayed is
taken by a worker and parked (delay.lua); any worker moves it when it is due (due.lua); a worker that takes it then runs
it. A worker may be frozen or killed at any time, its message lapses and returns (give_back.lua), and afterwards it may
go on with what it no longer holds. `sabotage` names a rule that is not kept: then the checks must fail.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

DUE_IN = 2
TAGS = 4  # deliveries; later ones are alike


@dataclass(frozen=True)
class Worker:
    """`tag`: of the delivery that it believes to hold; `ran`: its task has run; `moves`: it has read what is due."""

    state: str = "runs"  # or "frozen", "killed"
    tag: int = 0
    ran: bool = False
    moves: bool = False


@dataclass(frozen=True)
class World:
    """Copies of the message in each place: in its queue, delayed, booked by tag."""

    workers: tuple[Worker, Worker] = (Worker(), Worker())
    queued: int = 0
    delayed: int = 0
    booked: frozenset[int] = frozenset()
    due_in: int = DUE_IN
    tags: int = 0  # that were given
    settled: bool = False  # it was acknowledged by who held it, or cancelled

    @property
    def copies(self) -> int:
        return self.queued + self.delayed + len(self.booked)


class WrongError(Exception):
    """The message is lost, is there twice, or has run too early."""


def with_worker(world: World, number: int, **changes: object) -> World:
    workers = list(world.workers)
    workers[number] = replace(workers[number], **changes)  # type: ignore[arg-type]
    return replace(world, workers=(workers[0], workers[1]))


def of_a_worker(world: World, number: int, sabotage: str) -> Iterator[World]:
    """What a worker that runs can do."""
    worker = world.workers[number]
    if world.queued and not worker.tag and world.tags < TAGS:  # fetch.lua
        tag = world.tags + 1
        taken = replace(world, queued=world.queued - 1, booked=world.booked | {tag}, tags=tag)
        yield with_worker(taken, number, tag=tag, ran=False)
    if world.delayed and not world.due_in:  # due.lua
        if sabotage == "moves in two steps":
            yield with_worker(world, number, moves=True)
        else:
            yield replace(world, delayed=world.delayed - 1, queued=world.queued + 1)
    if worker.moves:
        moved = replace(world, delayed=max(world.delayed - 1, 0), queued=world.queued + 1)
        yield with_worker(moved, number, moves=False)
    if not worker.tag:
        return
    held = worker.tag in world.booked
    without = replace(world, booked=world.booked - {worker.tag})
    if world.due_in and sabotage != "runs early":  # delay.lua
        parked = replace(without, delayed=world.delayed + 1) if held or sabotage == "parks without its tag" else world
        yield with_worker(parked, number, tag=0)
    elif not worker.ran:
        if world.due_in:
            raise WrongError(world)
        yield with_worker(world, number, ran=True)
    else:  # an acknowledgement
        yield with_worker(replace(without, settled=True) if held else world, number, tag=0)
    returned = replace(without, queued=world.queued + 1) if held or sabotage == "returns without its tag" else world
    yield with_worker(returned, number, tag=0)  # give_back.lua, of a worker that stops


def steps(world: World, sabotage: str) -> Iterator[World]:
    """Everything that can happen next."""
    if world.due_in:
        yield replace(world, due_in=world.due_in - 1)
    for number, worker in enumerate(world.workers):
        if worker.state == "runs":
            yield with_worker(world, number, state="frozen")
            yield with_worker(world, number, state="killed")
            yield from of_a_worker(world, number, sabotage)
        else:
            if worker.tag in world.booked:  # its lease lapses, another worker returns the message
                yield replace(world, booked=world.booked - {worker.tag}, queued=world.queued + 1)
            if worker.state == "frozen":
                yield with_worker(world, number, state="runs")
    if world.delayed:  # `delayed cancel`, and `delayed give-up`
        yield replace(world, delayed=world.delayed - 1, settled=True)
        yield replace(world, delayed=world.delayed - 1, queued=world.queued + 1)


def explore(start: World, sabotage: str = "") -> set[World]:
    """All states that can be reached. Raises WrongError."""
    found, left = {start}, [start]
    while left:
        for after in steps(left.pop(), sabotage):
            if after.copies != (0 if after.settled else 1):
                raise WrongError(after)
            if after not in found:
                found.add(after)
                left.append(after)
    return found


PUBLISHED = [World(delayed=1), World(queued=1)]  # by the library, and by a stock publisher


@pytest.mark.parametrize("start", PUBLISHED)
def test_a_delayed_message_is_never_lost_nor_there_twice_nor_early(start: World) -> None:
    states = explore(start)
    assert len(states) > 1000
    assert any(world.settled for world in states)


@pytest.mark.parametrize(
    "sabotage", ["moves in two steps", "parks without its tag", "returns without its tag", "runs early"]
)
def test_a_broken_rule_is_found(sabotage: str) -> None:
    with pytest.raises(WrongError):
        explore(World(queued=1), sabotage)
