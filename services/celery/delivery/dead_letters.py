"""Dead letters: what was rejected without requeue, kept in a stream of the broker instead of thrown away.

The rule is AMQP's. `python -m delivery.dlq` lists them, shows one, puts them back on their queues, or drops them.

    dead-letters        stream; its ids carry the time. Fields of an entry:
        reason          why, one of `Reason`
        error           what was wrong with it, in words
        queue           where it came from
        task, id        of the task, where they can be told
        payload         the message as it was, byte for byte
"""

import json
from enum import StrEnum

KEY = "dead-letters"
MAX_ERROR = 1000  # characters

# Moves an unacknowledged message to the stream, unless it has gone back to its queue meanwhile: then it is not dead.
# KEYS: hash and index of unacknowledged messages, stream. ARGV: delivery tag, then fields and values of the entry.
MOVE = """
if redis.call('HDEL', KEYS[1], ARGV[1]) == 0 then
    return 0
end
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('XADD', KEYS[3], '*', unpack(ARGV, 2))
return 1
"""


class Reason(StrEnum):
    """Why a message is dead."""

    MALFORMED = "malformed"
    TOO_LARGE = "larger than MAX_MESSAGE_BYTES"
    UNKNOWN_TASK = "unknown task"
    REJECTED = "rejected by its task"
    RETRIES_EXHAUSTED = "retries exhausted"
    TIME_LIMIT = "hard time limit"
    WORKER_LOST = "killed its process"


def fields(reason: Reason, error: str, queue: str, payload: bytes) -> list[str | bytes]:
    """Fields and values of an entry, as XADD takes them, whatever was in the message."""
    task, task_id = identity(payload)
    pairs = {"reason": reason.value, "error": error[:MAX_ERROR], "queue": queue, "task": task, "id": task_id}
    return [*(_utf8(part) for pair in pairs.items() for part in pair), "payload", payload]


def identity(payload: bytes) -> tuple[str, str]:
    """Name and id of the task of a message, as far as they can be told."""
    try:
        headers = json.loads(payload)["headers"]
        return _utf8(headers.get("task") or ""), _utf8(headers.get("id") or "")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return "", ""


def _utf8(value: object) -> str:
    """Text that Redis takes: JSON can hold half of a surrogate pair."""
    return str(value).encode(errors="backslashreplace").decode()
