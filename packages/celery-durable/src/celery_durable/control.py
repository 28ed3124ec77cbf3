"""Remote control: a revocation is stored before it is sent to the workers, and no broadcast disturbs a worker."""

from typing import Any

from celery.app import control
from kombu import pidbox

from celery_durable.logs import get_logger
from celery_durable.messages import check_command

logger = get_logger(__name__)


class Node(pidbox.Node):
    """kombu's mailbox of a worker. A broadcast that is no command, for example one that is signed for other workers, is
    refused: Celery would log a traceback, and reconnect the mailbox."""

    def handle_message(self, body: Any, message: Any = None) -> Any:
        try:
            check_command(body)
        except TypeError as error:
            logger.warning("remote control: refused, it is no command: %s", error)
            return None
        return super().handle_message(body, message)


class Mailbox(pidbox.Mailbox):
    node_cls = Node


class Control(control.Control):
    """Celery's remote control for the app."""

    Mailbox = Mailbox

    def broadcast(self, command: str, arguments: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Raises RedisError if a revocation cannot be stored; then it is not sent either."""
        self.app.durable.revocations.remember(command, arguments or {})
        return super().broadcast(command, arguments, *args, **kwargs)
