"""Reading ahead: with a prefetch count of 1 each task would need a round trip to Redis, which takes longer than a short
task. So a channel takes some messages more than its consumers may have, as many as it has lately handed over in 5 ms.

They are handed over when there is room. What still waits after half a second, because a longer task came in between, is
returned to the front of its queue, where other workers take it.
"""

from time import monotonic

AHEAD = 0.005  # s
MOST = 50  # messages
MEASURED = 0.05  # s over which the rate is measured
WAITS = 0.5  # s


class Ahead:
    """Of one channel."""

    def __init__(self) -> None:
        self._handed_over, self._since = 0, monotonic()
        self._number = 0

    def count(self) -> None:
        """A message was handed over."""
        self._handed_over += 1

    def number(self) -> int:
        """How many messages to take in addition."""
        now = monotonic()
        if (passed := now - self._since) >= MEASURED:
            self._number = min(MOST, int(self._handed_over / passed * AHEAD))
            self._handed_over, self._since = 0, now
        return self._number
