"""Takes messages from the queues of a channel, and acknowledges others with the same command."""

from dataclasses import dataclass
from enum import Enum
from time import monotonic
from typing import Any

from kombu.utils.json import dumps
from redis.exceptions import NoScriptError

from celery_durable.atomic.scripts import FETCH

BATCH = 500  # messages and acknowledgements in one command
CALL_AGAIN = 1.0  # s after which a waiting worker calls again; fetch.lua: WATCH, WAIT

WATCHES = 1  # the role, see fetch.lua

_CHANGED = object()  # Redis' notification that a key which a waiting worker read has changed


class State(Enum):
    """What the connection of a fetcher waits for."""

    READY = "nothing"
    FETCHING = "the reply of fetch.lua"
    ASKING = "the reply of EXISTS, which has Redis watch keys"
    WAITING = "a notification: these keys did not exist"


@dataclass(frozen=True, slots=True)
class Fetched:
    """A message that was taken and booked."""

    tag: str
    queue: str
    message: bytes


class Fetcher:
    """The state of a channel's fetching connection. One command at a time is on its way; see fetch.lua."""

    def __init__(self, channel: Any, name: str, prefix: str) -> None:
        """`name`: unique; `prefix` of the delivery tags."""
        self._channel, self._name, self._prefix = channel, name, prefix
        self._wake = channel.key(f"wake:{name}")
        self._number = 0  # of the next tag; each is used once, also if a reply is lost
        self._first = 0  # of the tags of the fetch on its way
        self.sent_at = 0.0  # the last fetch
        self._prepared: Any = None  # the socket that has the script, and tracking
        self.reset()

    def reset(self) -> None:
        """The connection is lost; what was acknowledged with the lost command is acknowledged again."""
        self.state = State.READY
        self._channel.qos.sent_again()
        self._channel._in_poll = None  # kombu's name for the connection that a reply is expected on
        self._queues: list[str] = []
        self._lists: list[str] = []

    def start(self) -> None:
        """Send the command, if there is something to take or to acknowledge."""
        if self.state in (State.FETCHING, State.ASKING):
            return
        if self.state is State.WAITING and monotonic() - self._since > CALL_AGAIN:
            self.state = State.READY
        room = self._channel.room()
        for_acks = self.state is State.WAITING or self._channel.has_unread or not room
        if for_acks and (not self._channel.qos.has_acks or self._channel.acks_may_wait()):
            return
        self._send(min(room, BATCH))

    @property
    def has_reply(self) -> bool:
        """Whether the reply to the last command has arrived."""
        sent = self.state in (State.FETCHING, State.ASKING)
        return sent and bool(self._channel.client.connection.can_read(timeout=0))

    def consumers_changed(self) -> None:
        """What Redis was asked to watch is no longer what is consumed."""
        if self.state is State.WAITING:
            self.state = State.READY

    def read(self) -> list[Fetched]:
        """Called when the connection is readable. Raises RedisError, OSError."""
        found: list[Fetched] = []
        connection = self._channel.client.connection
        try:
            while True:
                try:
                    reply = connection.read_response(push_request=True)
                except NoScriptError:  # SCRIPT FLUSH
                    self._prepared = None
                    self.reset()
                    return found
                if reply is _CHANGED:
                    self.consumers_changed()
                elif self.state is State.FETCHING and reply is not None:
                    found += self._accept(reply)
                elif self.state is State.ASKING and reply is not None:
                    self._replied(State.READY if reply else State.WAITING)
                if not connection.can_read(timeout=0):
                    return found
        except self._channel.broken:
            self.reset()
            connection.disconnect()
            raise

    def finish(self) -> list[Fetched]:
        """Before the channel is closed: what the outstanding reply contains. Raises RedisError, OSError."""
        found: list[Fetched] = []
        connection = self._channel.client.connection
        while self.state in (State.FETCHING, State.ASKING):
            if not connection.can_read(timeout=CALL_AGAIN):
                connection.disconnect()  # what it contains is redelivered
                break
            found += self.read()
        return found

    def _accept(self, reply: list[Any]) -> list[Fetched]:
        late, role, *rest = reply
        self._channel.qos.acknowledged(late)
        found = []
        for number, (place, message) in enumerate(zip(rest[::2], rest[1::2], strict=True), self._first):
            found.append(Fetched(f"{self._prefix}{number:012}", self._queues[place - 1], message))
        self._replied(State.READY)
        if role:
            self._send_command(State.ASKING, "EXISTS", *(self._lists if role == WATCHES else [self._wake]))
        return found

    def _send(self, most: int) -> None:
        channel = self._channel
        connection = channel.client.connection
        if connection._sock is None or connection._sock is not self._prepared:
            self._prepare(connection)
        acks = channel.qos.send(BATCH)
        self._queues = channel.queues_in_turn()
        self._lists = [
            channel.prefixed(channel._q_for_pri(q, step)) for step in channel.priority_steps for q in self._queues
        ]
        group = ",".join(sorted(self._queues))
        keys = [
            *channel.books,
            channel.key(f"watcher:{group}"),
            channel.key(f"waiting:{group}"),
            self._wake,
            *self._lists,
        ]
        self.sent_at = monotonic()
        self._first, self._number = self._number, self._number + most
        arguments = [
            most,
            self._prefix,
            self._first,
            len(self._queues),
            int(channel.queue_order_strategy == "round_robin"),
            self._name,
            channel.key("wake:"),
            int(not channel.has_unread),  # else it would be told of a message that others have room for
            len(acks),
            *acks,
            *map(dumps, self._queues),
        ]
        self._send_command(State.FETCHING, "EVALSHA", FETCH.sha, len(keys), *keys, *arguments)

    def _send_command(self, state: State, *command: Any) -> None:
        channel = self._channel
        connection = channel.client.connection
        self.state = state
        channel._in_poll, channel._brpop_sent_at = connection, monotonic()  # kombu drops a connection without a reply
        try:
            connection.send_command(*command)
        except BaseException:
            self.reset()
            raise

    def _replied(self, state: State) -> None:
        self.state, self._since = state, monotonic()
        self._channel._in_poll = None

    def _prepare(self, connection: Any) -> None:
        """On a new connection: it has the script, and Redis notifies it."""
        connection._parser.set_invalidation_push_handler(lambda _: _CHANGED)
        # NOLOOP: not of its own changes
        for command in (("SCRIPT", "LOAD", FETCH.text), ("CLIENT", "TRACKING", "ON", "NOLOOP")):
            connection.send_command(*command)
            while connection.read_response(push_request=True) in (_CHANGED, None):
                pass
        self._prepared = connection._sock
