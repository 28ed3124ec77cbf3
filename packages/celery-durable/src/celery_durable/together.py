"""An outbox entry and its message, published in one round trip, where the store is the database of the broker."""

from typing import Any

from kombu.exceptions import OperationalError

from celery_durable.batch import CollectingProducer, Collector
from celery_durable.outbox import Entry, Outbox


class EntryProducer(CollectingProducer):
    """Publishes the message of an entry, which has the number 1, and writes the entry with it."""

    def __init__(self, producer: Any, outbox: Outbox, entry: Entry) -> None:
        self.collector = EntryCollector(producer, outbox, entry)
        super().__init__(producer, self.collector)
        self.collector.commands = []  # until the message is published: what Celery publishes after it is not part of it

    @property
    def number(self) -> int:
        """Of the message; 0 if the entry is not written."""
        return self.collector.number


class EntryCollector(Collector):
    """A channel: the first message that is published with it is written together with its entry."""

    def __init__(self, producer: Any, outbox: Outbox, entry: Entry) -> None:
        super().__init__(producer)
        self._outbox, self._entry, self.number = outbox, entry, 0

    def basic_publish(self, message: Any, **options: Any) -> None:
        """Raises RedisError, and OperationalError if the entry is written and its message is not published."""
        super().basic_publish(message, **options)
        commands, self.commands = self.commands or [], None
        self.number, error = self._outbox.write_and_publish(self._entry, commands)
        if error:
            raise OperationalError(error)
