"""The transport: one poller for its channels, one thread for their leases."""

import os
from collections.abc import Callable
from contextlib import suppress
from threading import get_ident
from typing import Any

from kombu.transport import redis

from celery_durable import transport
from celery_durable.atomic.channel import Channel
from celery_durable.atomic.fetching import CALL_AGAIN
from celery_durable.atomic.leases import Leases


class Poller(redis.MultiChannelPoller):
    """kombu's poller. Channels that fetch do not use BRPOP."""

    def __init__(self) -> None:
        super().__init__()
        self.loop: Any = None
        self._watched: dict[int, Any] = {}  # sockets by file descriptor

    def on_poll_start(self) -> None:
        super().on_poll_start()
        for channel in list(self._channels):
            if channel.fetches:
                channel.pump()

    @property
    def fds(self) -> dict[int, Any]:
        """In each turn of the event loop kombu adds these to it, which takes two system calls each. So only the new
        ones. A file descriptor may be used again for another socket."""
        fds: dict[int, Any] = super().fds
        if self.loop is None:
            return fds
        before, self._watched = self._watched, {each.fileno(): each for each in self._chan_to_sock.values()}
        return {
            fd: channel
            for fd, channel in fds.items()
            if fd not in self.loop.readers or before.get(fd) is not self._watched.get(fd)
        }

    def _register_BRPOP(self, channel: Any) -> None:  # noqa: N802 - kombu's name
        if not channel.fetches:
            super()._register_BRPOP(channel)

    def on_readable(self, fileno: int) -> Any:
        channel, kind = self._fd_to_chan.get(fileno, (None, None))
        if kind == "FETCH":  # also when nothing more may be taken: the reply contains messages that are booked
            return channel.read_fetched()
        return super().on_readable(fileno)

    def get(self, callback: Any, timeout: float | None = None) -> Any:
        for channel in self._channels:
            if channel.fetches and channel._buffer:
                channel.deliver()
                return None
        return super().get(callback, CALL_AGAIN if timeout is None else min(timeout, CALL_AGAIN))


class Transport(transport.Transport):
    """kombu's Redis transport with the same queues and the same wire format."""

    Channel = Channel

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle = Poller()
        self.loop: Any = None
        self.loop_thread = 0
        self._leases: Leases | None = None
        self.also_held: Callable[[], list[str]] = list  # tags of an earlier connection
        self._wake: tuple[int, int] | None = None
        self._turns: Any = None  # the timer that has the event loop make turns

    # --- Leases ---

    def hold_leases(self, channel: Any) -> None:
        """From now on what the channels of this connection hold is renewed."""
        if self._leases is None:
            self._leases = Leases(channel, self._held, self._fetching)
            for earlier in [each for each in self.client.durable.leases if each.only_renews]:
                earlier.stop()
            self.client.durable.leases.add(self._leases)

    def _held(self) -> list[str]:
        return list({*self.also_held(), *(tag for channel in list(self.channels) for tag in channel.held())})

    def _fetching(self) -> list[Any]:
        return [channel for channel in list(self.channels) if channel.fetches]

    # --- The event loop ---

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        super().register_with_event_loop(connection, loop)
        self.loop = self.cycle.loop = loop
        self.loop_thread = get_ident()
        if self._wake is None:
            self._wake = os.pipe()
            for end in self._wake:
                os.set_blocking(end, False)
        loop.add_reader(self._wake[0], self._on_wake)
        # Each turn of the loop calls `Poller.on_poll_start`.
        self._turns = loop.call_repeatedly(CALL_AGAIN, lambda: None)

    def wake(self) -> None:
        """Have the event loop make a turn; from another thread."""
        if self._wake is not None:
            with suppress(BlockingIOError):
                os.write(self._wake[1], b"\0")

    def _on_wake(self) -> None:
        if self._wake is not None:
            with suppress(BlockingIOError):
                os.read(self._wake[0], 4096)

    def close_connection(self, connection: Any) -> None:
        # First: closing the channels may fail without Redis.
        if self._leases is not None:
            if self.also_held():
                self._leases.only_renew(self.also_held)
            else:
                self._leases.stop()
            self._leases = None
        if self._turns is not None:
            self._turns.cancel()  # the loop continues with the next connection
            self._turns = None
        if self._wake is not None:
            if self.loop is not None:
                self.loop.remove_reader(self._wake[0])
            for end in self._wake:
                os.close(end)
            self._wake = None
        super().close_connection(connection)
