"""Health checks: healthy in normal operation, and unhealthy when a program hangs."""

import pytest

from stack.poll import poll_until
from stack.services import Celery, Service
from stack.stack import Stack


@pytest.mark.main
def test_the_service_is_healthy(service: Service, stack: Stack) -> None:
    state = stack.container(service.name).state
    assert state.status == "running"
    if service.healthy:
        assert state.health is not None, "no health check"
        assert state.health.status == "healthy"


@pytest.mark.disruptive
def test_programs_that_hang_become_unhealthy_and_healthy_again_when_they_continue(stack: Stack) -> None:
    # All at once, since a check needs several failures. Flower's check sends a request, the others read a heartbeat.
    names = [service.name for service in stack.services if isinstance(service, Celery) and service.scraped]

    def send(signal: str) -> None:
        """Signal the program, not the container's init, whose health check must still run."""
        children = "open('/proc/1/task/1/children').read().split()"
        program = f"import os, signal; os.kill(int({children}[0]), signal.{signal})"
        for name in names:
            stack.docker.container.execute(stack.container(name), ["python3", "-c", program])

    send("SIGSTOP")
    try:
        poll_until(
            lambda: sum("running, unhealthy" in line for line in stack.unhealthy(*names)) == len(names),
            f"{', '.join(names)} to be unhealthy",
            90,
        )
    finally:
        send("SIGCONT")
    stack.wait_healthy()
