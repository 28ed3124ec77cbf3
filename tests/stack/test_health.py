"""Health checks: all well when all is well, and not well when a program hangs."""

import pytest

from stack.poll import poll_until
from stack.services import Service
from stack.stack import Stack


def test_the_service_is_healthy(service: Service, stack: Stack) -> None:
    state = stack.container(service.name).state
    assert state.status == "running"
    if service.healthy:
        assert state.health is not None, "no health check"
        assert state.health.status == "healthy"


@pytest.mark.disruptive
@pytest.mark.parametrize("name", ["worker-low", "worker-high", "beat", "producer"])
def test_a_program_that_hangs_turns_unhealthy_and_well_again_when_it_goes_on(name: str, stack: Stack) -> None:
    container = stack.container(name)
    # SIGSTOP to what the container's init started, not to the container: its health check must still run.
    signal = (
        "import os, signal; [os.kill(int(p), signal.{}) for p in open('/proc/1/task/1/children').read().split()[:1]]"
    )
    stack.docker.container.execute(container, ["python3", "-c", signal.format("SIGSTOP")])
    try:
        poll_until(lambda: stack.unwell(name), f"{name} to be unhealthy", 60)
        assert "unhealthy" in stack.unwell(name)[0]
    finally:
        stack.docker.container.execute(container, ["python3", "-c", signal.format("SIGCONT")])
    stack.wait_healthy(name)
