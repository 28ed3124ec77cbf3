"""Tests import the services' code on the host, and share one stack for the whole run.

The stack is up before the first test that needs it, and removed with its volumes after the last; KEEP=1 keeps it.
"""

import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

# The code needs settings on the host, and must not reach any Redis: nothing listens on port 1 of loopback. The
# login in the URL replaces the containers' secret files.
os.environ["REDIS_BROKER_URL"] = os.environ["REDIS_RESULTS_URL"] = "redis://nobody:nothing@127.0.0.1:1/0"

# A background command of a shell without job control ignores Ctrl-C, and so would every script that a test interrupts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest

from interrupt import shield
from progress import Progress
from stack.stack import PROJECT, Stack, defaults, running

HERE = Path(__file__).parent


def needs_the_stack(item: pytest.Item) -> bool:
    """Whether a test uses the stack."""
    return item.path.parent in (HERE / "stack", HERE / "faults")


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """The stack, up and healthy. A test that disturbs it leaves it healthy."""
    os.environ.update(defaults())  # a variable of the process wins over .env
    stack = Stack()
    try:
        try:
            stack.up()
        except Exception as error:
            pytest.exit(f"the stack did not come up: {error}\n{stack.report()}", returncode=1)  # no test could run
        yield stack
    finally:
        if os.environ.get("KEEP") == "1":
            print(f"\nKEEP=1: the stack is still up; remove it: docker compose -p {PROJECT} down --volumes")
        else:
            stack.down()


def pytest_keyboard_interrupt() -> None:
    shield()


def pytest_sessionstart(session: pytest.Session) -> None:
    plugins = session.config.pluginmanager
    plugins.register(Progress(plugins.get_plugin("terminalreporter")))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Unit tests first, then tests that only read from the stack, then those that disturb it."""
    items.sort(key=lambda item: (needs_the_stack(item), item.get_closest_marker("disruptive") is not None))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and running and needs_the_stack(item):
        try:
            report.sections.append(("state of the stack", running[-1].report()))
        except Exception as error:
            report.sections.append(("state of the stack", f"unknown: {error!r}"))
    return report
