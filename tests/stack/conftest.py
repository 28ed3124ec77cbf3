"""Fixtures of the stack tests."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor  # demo

import pytest

from stack import inside as run
from stack.guide import Taken, take  # demo
from stack.inside import Inside
from stack.services import SERVICES, Service
from stack.stack import Stack
from stack.web import Prometheus


@pytest.fixture
def inside(stack: Stack) -> Inside:
    """Runs functions of stack/inside.py in a client container."""
    return stack.inside


@pytest.fixture
def prometheus(stack: Stack) -> Prometheus:
    """Prometheus' API."""
    return stack.prometheus


@pytest.fixture
def newest(inside: Inside) -> Iterator[str]:
    """The newest dead letter before the test; the test's dead letters are removed afterwards."""
    before = inside.call(run.last_dead_letter)
    yield before
    inside.call(run.drop_dead_letters, [letter["entry"] for letter in inside.call(run.dead_letters, before)])


# >>> demo
@pytest.fixture(scope="session", autouse=True)
def tour_beside(request: pytest.FixtureRequest) -> "Future[Taken] | None":
    """The whole tour, if a test needs it: runs beside the tests that only read, since it mostly waits."""
    if not any("taken" in getattr(item, "fixturenames", ()) for item in request.session.items):
        return None
    return ThreadPoolExecutor(1).submit(take, request.getfixturevalue("stack"))


@pytest.fixture(scope="module")
def quiet(stack: Stack) -> Iterator[None]:
    """Only the test publishes, and the queues are empty. For tests that count; mark them as disruptive."""
    with stack.stopped("producer", "beat"):
        stack.wait_idle()
        stack.prometheus.wait_scraped("worker-.+")  # or tasks that ended just before would count as the test's
        yield


# <<< demo


@pytest.fixture(params=[service for service in SERVICES if service.started], ids=lambda service: service.name)
def service(request: pytest.FixtureRequest, stack: Stack) -> Service:
    """Each service that `make up` starts; skipped if its profile is off in .env."""
    promised: Service = request.param
    if promised.name not in stack.enabled:
        pytest.skip(f"{promised.name}: its profile is not in COMPOSE_PROFILES (.env)")
    return promised
