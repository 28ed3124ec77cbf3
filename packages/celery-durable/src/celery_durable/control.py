"""Remote control: what is revoked is remembered before the workers are told."""

from typing import Any

from celery.app import control


class Control(control.Control):
    """Celery's remote control for the app."""

    def broadcast(self, command: str, arguments: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Raises RedisError where a revocation cannot be remembered; the workers are not told then."""
        self.app.durable.revocations.remember(command, arguments or {})
        return super().broadcast(command, arguments, *args, **kwargs)
