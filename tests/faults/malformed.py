"""The malformed messages that the library is tested with, addressed to a task and a queue of the stack."""

from tests import malformed
from tests.malformed import ID, READABLE

__all__ = ["ID", "READABLE", "kinds"]


def kinds(limit: int) -> dict[str, bytes]:
    """Each kind by its name, the same at each call; `limit` is the largest message that is allowed (bytes)."""
    return {
        name: raw.replace(b'"task": "add"', b'"task": "tasks.basic.add"').replace(b'"celery"', b'"low"')
        for name, raw in malformed.kinds(limit).items()
    }
