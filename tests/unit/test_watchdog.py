"""The watchdog's judgement: hung, deaf, or only slow."""

from dataclasses import dataclass

import timing
from delivery.watchdog import Vigil


@dataclass
class Worker:
    """What the watchdog sees of one."""

    turns: int = 0
    may_stand: bool = False
    received: int = 0
    idle: bool = True
    waiting: bool = False

    def vigil(self) -> Vigil:
        return Vigil(
            lambda: self.turns,
            lambda: self.may_stand,
            lambda: self.received,
            lambda: self.idle,
            lambda: self.waiting,
        )


def looks(seconds: float) -> range:
    return range(int(seconds / timing.WATCHDOG_INTERVAL))


def test_a_loop_that_turns_is_well() -> None:
    worker = Worker()
    vigil = worker.vigil()
    for _ in looks(5 * timing.HUNG_AFTER):
        worker.turns += 1
        assert vigil.look() == ""


def test_a_loop_that_does_not_turn_is_hung_after_a_while() -> None:
    vigil = Worker(turns=7).vigil()
    assert [vigil.look() for _ in looks(timing.HUNG_AFTER)] == [""] * len(looks(timing.HUNG_AFTER))
    assert vigil.look() == f"its event loop has not turned for {timing.HUNG_AFTER:g} s"


def test_a_turn_in_between_starts_the_count_anew() -> None:
    worker = Worker()
    vigil = worker.vigil()
    for _ in range(3):
        assert not any(vigil.look() for _ in looks(timing.HUNG_AFTER))
        worker.turns += 1


def test_a_loop_that_waits_for_redis_has_its_time_from_when_redis_is_back() -> None:
    worker = Worker(may_stand=True)
    vigil = worker.vigil()
    assert not any(vigil.look() for _ in looks(3 * timing.HUNG_AFTER))
    worker.may_stand = False
    said = [vigil.look() for _ in looks(timing.HUNG_AFTER)]
    assert not any(said[:-1])
    assert said[-1]


def test_idle_while_messages_wait_is_deaf_after_a_while() -> None:
    worker = Worker(waiting=True)
    vigil = worker.vigil()
    said = []
    for _ in looks(timing.DEAF_AFTER + timing.WATCHDOG_INTERVAL):
        worker.turns += 1
        said.append(vigil.look())
    assert not any(said[:-1])
    assert said[-1] == f"messages have waited for {timing.DEAF_AFTER:g} s while it was idle and took none"


def test_who_is_busy_has_nothing_to_do_or_takes_messages_is_not_deaf() -> None:
    for worker in (Worker(idle=False, waiting=True), Worker(waiting=False)):
        vigil = worker.vigil()
        for _ in looks(3 * timing.DEAF_AFTER):
            worker.turns += 1
            assert vigil.look() == ""
    worker = Worker(waiting=True)
    vigil = worker.vigil()
    for _ in looks(3 * timing.DEAF_AFTER):
        worker.turns += 1
        worker.received += 1
        assert vigil.look() == ""
