"""What a channel holds: messages that it has taken and not acknowledged."""

from collections import deque
from contextlib import nullcontext, suppress
from typing import Any

from redis import Redis

from celery_durable import transport
from celery_durable.atomic.leases import TAG_PREFIX
from celery_durable.dead_letters import Reason
from celery_durable.logs import get_logger

logger = get_logger(__name__)


class QoS(transport.QoS):
    """Acknowledgements are sent with the next fetch. One that is lost with its connection is sent again: it removes a
    delivery tag, and each delivery has its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._acks: deque[str] = deque()  # other threads append
        self._sent: list[str] = []  # with the fetch whose reply is not read yet
        self._kept: dict[str, Any] = {}  # see `let_go`

    # --- What is held ---

    def hold(self, tag: str, message: Any) -> None:
        """A message that is booked already."""
        if self._dirty:
            self._flush()
        self._quick_append(tag, message)

    def append(self, message: Any, delivery_tag: str) -> None:
        """Called by kombu: for a message that `Channel._get` has booked, and for one of a fanout."""
        self.hold(delivery_tag, message)

    def held(self) -> list[str]:
        """Delivery tags. Called by another thread: list() of a dict is one step."""
        return [tag for tag in list(self._delivered) if tag not in self._dirty]

    def let_go(self, tags: list[str]) -> None:
        """These are not given back when the channel is closed; somebody else has them renewed."""
        for tag in tags:
            if message := self._delivered.pop(tag, None):
                self._kept[tag] = message

    # --- Acknowledging ---

    @property
    def has_acks(self) -> bool:
        """Whether some wait to be sent."""
        return bool(self._acks or self._of_lost_connections)

    @property
    def _of_lost_connections(self) -> deque[str]:
        """Any connection can send them: no other delivery has their tag."""
        return self.channel.durable.unsent_acks  # type: ignore[no-any-return]

    def ack(self, delivery_tag: str) -> None:
        self._quick_ack(delivery_tag)
        if delivery_tag.startswith(TAG_PREFIX):  # not of a fanout, which is not booked
            self._acks.append(delivery_tag)
            self.channel.ack_waits()

    def send(self, most: int) -> list[str]:
        """The next to be sent with a fetch."""
        self._sent = self._take(most)
        return self._sent

    def _take(self, most: int) -> list[str]:
        taken: list[str] = []
        for waiting in (self._of_lost_connections, self._acks):
            with suppress(IndexError):  # another thread takes them, too
                while len(taken) < most:
                    taken.append(waiting.popleft())
        return taken

    def acknowledged(self, late: int) -> None:
        """Those of the fetch have arrived; `late` of them were no longer held by this worker."""
        self._sent = []
        if late:
            self.channel.fenced("acknowledge", late)

    def sent_again(self) -> None:
        """The connection is lost."""
        self._acks.extendleft(reversed(self._sent))
        self._sent = []

    def send_all(self, client: Redis | None = None) -> None:
        """Send what waits, and wait for the reply. Raises RedisError."""
        while tags := self._take(500):
            try:
                with nullcontext(client) if client else self.channel.raw_client() as connected:
                    pipe = connected.pipeline(transaction=False)  # a full Redis refuses MULTI
                    pipe.hdel(self.channel.books[0], *tags)
                    pipe.zrem(self.channel.books[1], *tags)
                    removed, _ = pipe.execute()
            except BaseException:
                self._acks.extendleft(reversed(tags))
                raise
            if removed < len(tags):
                self.channel.fenced("acknowledge", len(tags) - removed)

    def leave_acks(self) -> None:
        """To the next connection, which sends them: Redis does not answer."""
        self.sent_again()
        with suppress(IndexError):  # other threads append
            while True:
                self._of_lost_connections.append(self._acks.popleft())

    # --- Giving back ---

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        message = self._delivered.get(delivery_tag) or self._kept.get(delivery_tag)
        if message is None:
            self.ack(delivery_tag)
        elif requeue:
            self.give_back([delivery_tag], first=False)
        elif self.channel.durable.config.dead_letters:
            if not self.channel.dead_letter(message, *getattr(message, "dead", (Reason.REJECTED, ""))):
                self.channel.fenced("reject")
            self._quick_ack(delivery_tag)
        else:
            self.ack(delivery_tag)

    def give_back(self, tags: list[str], first: bool) -> None:
        """Return messages to their queues: to be the next, or the last. Raises RedisError."""
        with self.channel.raw_client() as client:
            for tag in tags:
                message = self._delivered.get(tag) or self._kept[tag]
                if not self.channel.give_back(client, tag, message._raw, [transport._queue_of(message)], first):
                    self.channel.fenced("requeue")
                self._quick_ack(tag)

    def restore_unacked(self, client: Any = None) -> None:
        """At the end: the newest first, so that the oldest is the next. Without Redis their leases lapse."""
        self._flush()
        try:
            self.give_back(list(self._delivered)[::-1], first=True)
        except self.channel.broken as error:
            logger.warning("messages not returned at the end, they are redelivered: %s", error)
        self._delivered.clear()

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """See `leases.Leases`."""
