"""Remote control: a revocation is stored before it is sent to the workers."""

from typing import Any

from celery.app import control


class Control(control.Control):
    """Celery's remote control for the app."""

    def broadcast(self, command: str, arguments: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Raises RedisError if a revocation cannot be stored; then it is not sent either."""
        self.app.durable.revocations.remember(command, arguments or {})
        return super().broadcast(command, arguments, *args, **kwargs)
