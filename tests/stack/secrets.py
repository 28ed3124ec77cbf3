"""Looks for secrets where nobody should find them: in logs, `docker inspect`, and metrics."""

from collections.abc import Iterator
from datetime import datetime

from python_on_whales import Container

from stack import inside as run
from stack.stack import ROOT, Stack, service_of
from stack.web import login


def passwords() -> list[str]:
    """All passwords of the stack."""
    found = [file.read_text().strip() for file in (ROOT / "secrets").glob("*_password")]
    assert len(found) >= 6
    return found


def leaks(stack: Stack, *also: str, since: datetime | None = None) -> list[str]:
    """Where a password, or one of the other texts, is shown. `since`: of the logs."""
    secrets = [*passwords(), *also]
    found = []
    for container in stack.containers():
        shown = {
            "log": str(stack.docker.container.logs(container, since=since)),
            "docker inspect": stack.docker_output("inspect", container.id),
            "image": stack.docker_output("inspect", container.image),
            **dict(_metrics(stack, container)),
        }
        found += [
            f"{container.name}: its {where} shows a secret"
            for where, text in shown.items()
            if any(secret in text for secret in secrets)
        ]
    return found


def _metrics(stack: Stack, container: Container) -> Iterator[tuple[str, str]]:
    """The metrics of a container, as Prometheus reads them."""
    (service,) = [each for each in stack.services if each.name == service_of(container)]
    networks = container.network_settings.networks or {}
    address = next((end.ip_address for name, end in networks.items() if name.endswith("_broker")), None)
    if address and service.scraped and service.port and container.state.running:
        yield "metrics", stack.inside.call(run.page, f"http://{address}:{service.port}/metrics", *login("flower"))
