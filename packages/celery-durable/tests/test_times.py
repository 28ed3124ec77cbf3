"""Times in messages are read as Celery's workers read them, whatever the time zones of the processes are."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from celery_durable.times import aware, epoch, eta_of

from .project import run_python

NOON = datetime(2026, 7, 1, 12, tzinfo=UTC).timestamp()

ZONES = ["UTC", "America/Los_Angeles", "Asia/Kolkata", "Pacific/Kiritimati"]

# How Celery's worker reads each text, and how the library does.
COMPARE = """
import json, sys
from types import SimpleNamespace
from celery import Celery
from celery.worker.request import Request
from celery_durable.times import epoch

compared = []
for zone in (None, "America/Los_Angeles", "Asia/Tokyo"):
    app = Celery("zone", set_as_current=False)
    app.conf.timezone = zone
    @app.task(shared=False)
    def task(): ...
    for text in sys.argv[1:]:
        message = SimpleNamespace(headers={"id": "a", "task": task.name, "eta": text}, body="", payload=([], {}, {}),
                                  content_type="", content_encoding="", delivery_info={}, properties={})
        compared.append([text, Request(message, app=app, task=task).eta.timestamp(), epoch(text)])
print(json.dumps(compared))
"""

# Publishes a task with an ETA that has no offset, and prints what it was refused for.
PUBLISH = """
from datetime import datetime, timedelta, timezone
from celery import Celery
from celery_durable import Config, DelayTooLongError, install

app = Celery("west", broker="redis://127.0.0.1:1/0")
app.conf.task_publish_retry = False
install(app, Config(store="redis://127.0.0.1:1/0", transport="stock"))
for seconds in (30, 90):
    eta = datetime.now(timezone.utc).replace(tzinfo=None) + timedelta(seconds=seconds)
    try:
        app.send_task("a", eta=eta)
    except DelayTooLongError as error:
        print(error)
    except Exception as error:
        print(type(error).__name__)
"""


@pytest.mark.parametrize("zone", ZONES)
def test_each_text_is_read_as_celery_reads_it(zone: str) -> None:
    texts = [
        "2026-07-01T12:00:00",
        "2026-01-01T12:00:00.250",
        "2026-07-01T12:00:00Z",
        "2026-07-01T12:00:00+00:00",
        "2026-07-01T12:00:00-07:00",
        "2026-11-01T01:30:00-08:00",
    ]
    done = run_python(COMPARE, *texts, TZ=zone)
    compared = json.loads(done.stdout)
    assert len(compared) == 3 * len(texts)
    assert [(text, ours) for text, _, ours in compared] == [(text, celerys) for text, celerys, _ in compared]


@pytest.mark.parametrize("zone", ZONES)
def test_an_eta_without_an_offset_is_refused_by_its_remaining_delay(zone: str) -> None:
    done = run_python(PUBLISH, TZ=zone)
    published, refused = done.stdout.splitlines()
    assert published == "OperationalError", "nothing listens there"
    assert refused.startswith(("a: due in 90 s; ", "a: due in 89 s; "))


def test_a_time_without_an_offset_is_utc() -> None:
    assert epoch("2026-07-01T12:00:00") == epoch("2026-07-01T14:00:00+02:00") == NOON
    assert aware(datetime(2026, 7, 1, 12)).timestamp() == NOON  # noqa: DTZ001
    assert aware(datetime.fromtimestamp(NOON, UTC) + timedelta(1)).timestamp() == NOON + 86_400


@pytest.mark.parametrize("eta", [None, "", "soon", 7, {}, "9999-99-99T00:00:00", "0001-01-01T00:00:00+14:00"])
def test_an_eta_that_cannot_be_read_is_none(eta: object) -> None:
    assert eta_of({"eta": eta}) <= 0


def test_an_eta_that_can_be_read() -> None:
    assert eta_of({"eta": "2026-07-01T12:00:00"}) == NOON
    assert eta_of({}) == 0
