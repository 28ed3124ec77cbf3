"""Notes of tasks for their callers: lists under `tour:<name>` in redis-results."""

from celery_app import durable

KEPT_FOR = 600  # s


def key(name: str) -> str:
    """The key of a name."""
    return f"tour:{name}"


def note(name: str, text: str) -> int:
    """Append a line to a list. Returns how many lines it has."""
    with durable.store.pipeline() as pipe:
        pipe.rpush(key(name), text)
        pipe.expire(key(name), KEPT_FOR)
        return int(pipe.execute()[0])
