"""Flower's settings, read by `celery -A celery_app flower` from its working directory."""

from logging import LogRecord, getLogger
from pathlib import Path

from flower.views.monitor import Metrics
from tornado.web import authenticated

# Without a login Flower's API refuses requests, but its pages can still shut workers down.
basic_auth = ["admin:" + Path("/run/secrets/flower_password").read_text().strip()]
# Tasks kept in memory. The default is 100,000; the container has 256 MB.
max_tasks = 5000
# Flower's metrics are the only page with data that asks for no login.
Metrics.get = authenticated(Metrics.get)


def _without_event(record: LogRecord) -> bool:
    if str(record.msg).startswith("Exception in callback"):
        record.msg, record.args = "Exception in a callback", ()
    return True


# Tornado logs the callback that failed: for an event that Flower cannot read, the event with the task's arguments.
getLogger("tornado.application").addFilter(_without_event)
