"""The transport: a message that goes back to its queue says since when it waits."""

import time

from kombu import Connection

from delivery.transport import Transport
from unit.redis_server import RedisServer


def test_a_message_that_goes_back_is_stamped(redis_server: RedisServer) -> None:
    with Connection(redis_server.url, transport=Transport) as connection, connection.SimpleQueue("low") as queue:
        queue.put("text")
        message = queue.get(timeout=10)
        assert "redelivered_at" not in message.headers
        before = time.time()
        message.requeue()
        assert before <= queue.get(timeout=10).headers["redelivered_at"] <= time.time()
