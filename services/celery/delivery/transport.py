"""kombu's stock Redis transport, with one addition: a message that goes back to its queue says since when it waits."""

import time
from typing import Any

from kombu.transport import redis


class Channel(redis.Channel):
    """Stamps `redelivered_at` (epoch seconds) on a message that is restored: a stop, a lost worker, a reject."""

    def _do_restore_message(self, payload: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        headers = payload.get("headers")
        if isinstance(headers, dict):
            headers["redelivered_at"] = time.time()
        super()._do_restore_message(payload, *args, **kwargs)


class Transport(redis.Transport):
    Channel = Channel
