"""One stack for the whole run: up before the first test, removed with its volumes after the last; KEEP=1 keeps it."""

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from stack.inside import Inside
from stack.services import SERVICES, Service
from stack.stack import PROJECT, Stack
from stack.web import Prometheus

HERE = Path(__file__).parent
running: list[Stack] = []


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """The stack, up and healthy. A test that disturbs it leaves it healthy."""
    stack = Stack()
    running.append(stack)
    try:
        try:
            stack.up()
        except Exception as error:
            pytest.exit(f"the stack did not come up: {error}\n{stack.report()}", returncode=1)  # no test could run
        yield stack
    finally:
        running.clear()
        if os.environ.get("KEEP") == "1":
            print(f"\nKEEP=1: the stack is still up; remove it: docker compose -p {PROJECT} down --volumes")
        else:
            stack.down()


@pytest.fixture
def inside(stack: Stack) -> Inside:
    """Runs functions of stack/inside.py in a client container."""
    return stack.inside


@pytest.fixture
def prometheus(stack: Stack) -> Prometheus:
    """Prometheus' API."""
    return stack.prometheus


@pytest.fixture(scope="module")
def quiet(stack: Stack) -> Iterator[None]:
    """Nobody publishes but the test, and nothing is left in the queues. For tests that count: mark them disruptive."""
    with stack.stopped("producer", "beat"):
        stack.wait_idle()
        stack.prometheus.wait_scraped("worker-.+")  # else what was done just before would count as the test's
        yield


@pytest.fixture(params=[service for service in SERVICES if service.started], ids=lambda service: service.name)
def service(request: pytest.FixtureRequest, stack: Stack) -> Service:
    """Each service that `make up` starts; skipped when its profile is off in .env."""
    promised: Service = request.param
    if promised.name not in stack.enabled:
        pytest.skip(f"{promised.name}: its profile is not in COMPOSE_PROFILES (.env)")
    return promised


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Unit tests first, then what only looks at the stack, then what disturbs it."""
    items.sort(key=lambda item: (HERE in item.path.parents, item.get_closest_marker("disruptive") is not None))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and running and HERE in item.path.parents:
        try:
            report.sections.append(("state of the stack", running[0].report()))
        except Exception as error:
            report.sections.append(("state of the stack", f"unknown: {error!r}"))
    return report
