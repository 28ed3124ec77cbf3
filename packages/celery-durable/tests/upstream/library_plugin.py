"""A pytest plugin for the tests of kombu and Celery: they use the library, and their outcomes are written to a file.

UPSTREAM_TRANSPORT: `stock`, `atomic`, or `unmodified` for kombu and Celery as they are; UPSTREAM_OUTCOMES: the file.
`celery` commands that a test starts in processes of their own run without the library.
"""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kombu
import pytest
from celery import Celery
from kombu import transport
from kombu.transport import redis

from celery_durable import Config, install
from celery_durable.atomic import transport as atomic
from celery_durable.transport import Transport

TRANSPORT = os.environ["UPSTREAM_TRANSPORT"]
WITH_LIBRARY = TRANSPORT in ("stock", "atomic")
LONGEST = 300  # s a test may take, as in Celery's marks for pytest-timeout
WORST_FIRST = ("failed", "skipped", "passed")


Library = atomic.Transport if TRANSPORT == "atomic" else Transport


def use_library() -> None:
    options = Config(store=os.environ["TEST_BROKER"], transport=TRANSPORT)  # type: ignore[arg-type]
    app = Celery("upstream", set_as_current=False)
    kombu.Connection.durable = install(app, options)  # kombu's tests have connections, and no app
    transport.TRANSPORT_ALIASES["redis"] = f"{Library.__module__}:{Library.__name__}"
    Celery.on_init = lambda app: install(app, options)


def use_names() -> None:
    """kombu's unit tests use the names of its module."""
    redis.Transport, redis.Channel, redis.QoS = Library, Library.Channel, Library.Channel.QoS
    if TRANSPORT == "atomic":
        redis.MultiChannelPoller = atomic.Poller


def pytest_configure(config: Any) -> None:
    if WITH_LIBRARY:
        use_library()
        if any("/unit/" in argument for argument in config.args):
            use_names()


outcomes: dict[str, str] = {}


def pytest_runtest_logreport(report: Any) -> None:
    seen = {report.outcome, outcomes.get(report.nodeid, "passed")}
    outcomes[report.nodeid] = next(outcome for outcome in WORST_FIRST if outcome in seen)


def pytest_sessionfinish() -> None:
    Path(os.environ["UPSTREAM_OUTCOMES"]).write_text(json.dumps(outcomes))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: Any) -> Iterator[None]:
    def give_up(*_: Any) -> None:
        pytest.fail(f"takes longer than {LONGEST} s")  # no Exception, which what is tested might handle

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(LONGEST)
    try:
        return (yield)
    finally:
        signal.alarm(0)
