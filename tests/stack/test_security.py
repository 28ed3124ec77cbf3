"""Each security promise, tested by an attempt to break it."""

import json
import re
import socket
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest

from stack import inside as run
from stack import web
from stack.inside import Inside
from stack.poll import poll_until
from stack.secrets import leaks
from stack.services import MIB, SERVICES, Service
from stack.stack import PROJECT, Stack
from stack.web import SECRETS

pytestmark = pytest.mark.main


@dataclass(frozen=True)
class Address:
    """The address and port of a service on one of its networks."""

    service: str
    network: str
    ip: str
    port: int


@dataclass(frozen=True)
class Evidence:
    """The output of a probe beside a service's container (stack/probe.py)."""

    service: Service
    report: dict[str, Any]
    reached: list[Address]
    tried: list[Address]


@pytest.fixture(scope="session")
def addresses(stack: Stack) -> list[Address]:
    """Every address on which something listens inside the stack."""
    found = []
    for service in stack.services:
        if service.port is None:
            continue
        for name, network in (stack.container(service.name).network_settings.networks or {}).items():
            assert network.ip_address
            found.append(Address(service.name, name.split("_")[-1], network.ip_address, service.port))
    return found


@pytest.fixture(scope="session", params=SERVICES, ids=lambda service: service.name)
def evidence(request: pytest.FixtureRequest, stack: Stack, addresses: list[Address]) -> Evidence:
    """The evidence of each service, including the client."""
    service: Service = request.param
    if service.started and service.name not in stack.enabled:
        pytest.skip(f"{service.name}: its profile is not in COMPOSE_PROFILES (.env)")
    report = stack.probe(stack.container(service.name), [(address.ip, address.port) for address in addresses])
    reached = {tuple(address) for address in report["reached"]}
    return Evidence(service, report, [a for a in addresses if (a.ip, a.port) in reached], addresses)


def test_every_process_runs_as_the_promised_user_and_never_as_root(evidence: Evidence) -> None:
    assert evidence.report["processes"]
    for process in evidence.report["processes"]:
        assert process["users"] == [evidence.service.user], process
    assert evidence.service.user != 0


def test_no_process_has_a_capability_or_can_gain_one(evidence: Evidence) -> None:
    assert evidence.report["processes"]
    for process in evidence.report["processes"]:
        assert process["capabilities"] == 0, process
        assert process["no_new_privileges"], process


def test_nothing_can_be_written_but_the_promised_folders(evidence: Evidence) -> None:
    assert set(evidence.report["writable"]) == set(evidence.service.writable)


def test_the_kernel_limits_memory_and_processes(evidence: Evidence) -> None:
    assert evidence.report["limits"] == {"memory": evidence.service.memory * MIB, "pids": evidence.service.pids}


def test_it_reaches_only_the_services_on_its_networks(evidence: Evidence) -> None:
    expected = [address for address in evidence.tried if address.network in evidence.service.networks]
    assert set(evidence.reached) == set(expected)


def test_only_the_network_that_publishes_ports_leads_out(stack: Stack) -> None:
    # Read from the engine: an attempt would send packets to the internet if the promise were broken.
    found = stack.docker.network.list(filters=[("label", f"com.docker.compose.project={PROJECT}")])
    inner = {network.name.removeprefix(f"{PROJECT}_"): network.internal for network in found}
    assert inner == {"broker": True, "results": True, "metrics": True, "edge": False}


# --- From the host ---


def opens(host: str, port: int) -> bool:
    """Whether a TCP connection succeeds."""
    try:
        socket.create_connection((host, port), timeout=2).close()
    except OSError:
        return False
    return True


def other_addresses(stack: Stack) -> set[str]:
    """Addresses of this host besides loopback: that of its default route, and its ends of the stack's networks."""
    found = set()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        try:
            udp.connect(("192.0.2.1", 9))  # looks up the route, sends nothing
            found.add(udp.getsockname()[0])
        except OSError:
            pass
    for container in stack.containers():
        found.update(
            network.gateway for network in (container.network_settings.networks or {}).values() if network.gateway
        )
    return found


def test_ports_are_published_on_loopback_only_and_only_the_promised_ones(service: Service, stack: Stack) -> None:
    bindings = stack.container(service.name).network_settings.ports or {}
    published = {inner: outer for inner, outer in bindings.items() if outer}
    if not service.published:
        assert published == {}
        return
    assert list(published) == [f"{service.port}/tcp"]
    port = int(stack.url(service.name).rsplit(":", 1)[1])
    assert opens("127.0.0.1", port)
    others = other_addresses(stack)
    assert others
    assert [address for address in others if opens(address, port)] == []


def test_no_secret_is_in_a_log_or_on_a_page_of_metrics_or_shown_by_docker_inspect(
    stack: Stack, inside: Inside, newest: str
) -> None:
    """Of passwords and of arguments: of a task that runs, one with wrong arguments, an unknown and a malformed one."""
    canary, report = f"canary-{uuid4().hex}", "tasks.maintenance.report"
    fails = inside.call(run.send_by_name, report, {}, [canary])  # it has no arguments
    unknown = inside.call(run.send_by_name, "unknown", {"unknown_for": 1e6}, [canary])
    malformed = inside.call(run.send_by_name, report, {"eta": "soon"}, [canary])
    poll_until(lambda: inside.call(run.states, [fails]) == ["FAILURE"], "the task to fail", 30)
    poll_until(
        lambda: {unknown, malformed} <= {letter["id"] for letter in inside.call(run.dead_letters, newest)},
        "two dead letters",
        30,
    )
    if "celery-exporter" in stack.enabled:
        inside.call(run.send_event, "task-received", args=canary)  # without the task's id: an error in celery-exporter
        exporter = stack.container("celery-exporter")
        poll_until(lambda: "KeyError" in str(stack.docker.container.logs(exporter)), "the exporter's error", 30)
    assert leaks(stack, canary) == []


@pytest.mark.parametrize(
    "image", [s.name for s in SERVICES if s.own_image and s.name in ("worker-low", "queue-exporter")]
)
def test_our_images_have_no_installer_and_no_compiler(image: str, stack: Stack) -> None:
    attempt = (
        "import shutil, importlib.util as u;"
        "print([t for t in 'pip pip3 uv cc gcc c++ g++ ld make apt-get'.split() if shutil.which(t)],"
        " [m for m in ('pip', 'ensurepip') if u.find_spec(m)])"
    )
    found = stack.docker.container.execute(stack.container(image), ["python3", "-c", attempt])
    # apt-get is part of the base image; without root and with a read-only root it can install nothing.
    assert re.sub("'apt-get'", "", str(found)) == "[] []"


def test_a_pickled_message_is_never_unpickled_and_does_not_stop_the_worker(
    stack: Stack, inside: Inside, newest: str
) -> None:
    before = stack.container("worker-low").state.pid
    inside.call(run.publish_pickle, "/run/celery/unpickled")
    (task,) = inside.call(run.publish, "tasks.maintenance.report", [[]], priority=1)
    poll_until(lambda: inside.call(run.states, [task]) == ["SUCCESS"], "a task published after it", 30)
    worker = stack.container("worker-low")
    assert "unpickled" not in str(stack.docker.container.execute(worker, ["ls", "/run/celery"]))
    assert worker.state.pid == before, "the worker did not survive it"
    reasons = [letter["reason"] for letter in inside.call(run.dead_letters, newest) if letter["id"] == "pickled"]
    assert reasons == ["malformed"]


# --- Logins ---


@pytest.mark.parametrize("host", ["redis", "redis-results"])
@pytest.mark.parametrize("login", [(None, None), ("default", "guess"), ("celery", "guess"), ("exporter", "guess")])
def test_redis_refuses_commands_without_a_login(
    host: str, login: tuple[str | None, str | None], inside: Inside
) -> None:
    assert "Authentication" in inside.call(run.redis_says, host, *login, "PING")


FORBIDDEN = (
    "CONFIG GET *",
    "CONFIG SET maxmemory 1",
    "FLUSHALL",
    "FLUSHDB",
    "KEYS *",
    "SHUTDOWN",
    "ACL LIST",
    "SCRIPT FLUSH",
    "SCRIPT KILL",
    "EVAL return(1) 0",
    "FUNCTION LIST",
    "SAVE",
    "SET someone-elses-key 1",
)


@pytest.mark.parametrize("host", ["redis", "redis-results"])
@pytest.mark.parametrize("command", FORBIDDEN)
def test_celery_has_only_the_rights_in_redis_that_it_needs(host: str, command: str, inside: Inside) -> None:
    password = (SECRETS / "redis_celery_password").read_text().strip()
    assert inside.call(run.redis_says, host, "celery", password, "PING") == "OK"
    assert inside.call(run.redis_says, host, "celery", password, *command.split()).startswith("NoPermissionError")


@pytest.mark.parametrize("host", ["redis", "redis-results"])
def test_there_is_one_database(host: str, inside: Inside) -> None:
    password = (SECRETS / "redis_celery_password").read_text().strip()
    assert "out of range" in inside.call(run.redis_says, host, "celery", password, "SELECT", 1)


@pytest.mark.disruptive
@pytest.mark.parametrize("host", ["redis", "redis-results"])
@pytest.mark.parametrize("first", ["", "redis.call('SET', 'celery-durable:endless', '1') "], ids=["reads", "writes"])
def test_an_endless_script_blocks_redis_for_seconds_only(host: str, first: str, stack: Stack, inside: Inside) -> None:
    password = (SECRETS / "redis_celery_password").read_text().strip()
    restarts = stack.container(host).restart_count or 0
    said = inside.call(run.endless_script, host, "celery", password, f"{first}while true do end")
    assert said.startswith(("TimeoutError", "ConnectionError", "ResponseError")), said
    poll_until(lambda: inside.call(run.redis_says, host, "celery", password, "PING") == "OK", "Redis to answer", 60)
    stack.wait_healthy()
    assert (stack.container(host).restart_count or 0) - restarts == bool(first), "only a script that wrote needs that"
    reader = (SECRETS / "redis_exporter_password").read_text().strip()
    assert "celery-durable:endless" not in inside.call(run.keys, host, "exporter", reader)


@pytest.mark.parametrize("host", ["redis", "redis-results"])
@pytest.mark.parametrize("command", ["SET k 1", "LPUSH low x", "DEL low", "CONFIG GET *", "FLUSHALL"])
def test_exporters_can_only_read_redis(host: str, command: str, inside: Inside) -> None:
    password = (SECRETS / "redis_exporter_password").read_text().strip()
    assert inside.call(run.redis_says, host, "exporter", password, "LLEN", "low") == "OK"
    assert inside.call(run.redis_says, host, "exporter", password, *command.split()).startswith("NoPermissionError")


PAGES = {
    "flower": ("/", "/api/workers", "/api/tasks", "/broker", "/workers", "/metrics"),
    "prometheus": ("/", "/-/healthy", "/metrics", "/api/v1/query?query=up", "/api/v1/status/config"),
    "alertmanager": ("/", "/-/healthy", "/metrics", "/api/v2/alerts", "/api/v2/silences"),
}


@pytest.mark.parametrize("name", PAGES)
def test_its_pages_need_its_login(name: str, stack: Stack) -> None:
    """Also with another name of the host, which a page in a browser can have resolved to 127.0.0.1 (DNS rebinding)."""
    address = enabled(stack, name)
    *_, data = PAGES[name]
    for page in PAGES[name]:
        assert web.status(address + page) == 401, page
        assert web.status(address + page, ("admin", "admin")) == 401, page
        assert web.status(address + page, headers={"Host": "rebound.test"}) == 401, page
    assert web.status(address + data, web.login(name)) == 200


def enabled(stack: Stack, name: str) -> str:
    """The address of a service; skips the test if it is in no enabled profile."""
    if name not in stack.enabled:
        pytest.skip(f"{name}: its profile is not in COMPOSE_PROFILES (.env)")
    return stack.url(name)


#: What silences all alerts for a year.
SILENCE = {
    "matchers": [{"name": "alertname", "value": ".+", "isRegex": True}],
    "startsAt": "2030-01-01T00:00:00Z",
    "endsAt": "2031-01-01T00:00:00Z",
    "createdBy": "test",
    "comment": "test",
}


def test_another_site_cannot_use_the_login_that_a_browser_has_saved(stack: Stack) -> None:
    """Browsers send a saved login with the forms of other sites, too: as text, or with the address of that site."""
    silence = json.dumps(SILENCE).encode()
    silences = f"{stack.url('alertmanager')}/api/v2/silences"
    alertmanager = web.login("alertmanager")
    assert web.status(silences, method="POST", body=silence, headers={"Content-Type": "application/json"}) == 401
    preflight = {"Origin": "http://other.test", "Access-Control-Request-Method": "POST"}
    assert web.status(silences, method="OPTIONS", headers=preflight) == 401  # so a browser sends no JSON
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        assert web.status(silences, alertmanager, "POST", silence, {"Content-Type": kind}) == 415
    assert web.get(silences, alertmanager) == []
    shutdown = f"{enabled(stack, 'flower')}/api/worker/shutdown/celery@nobody"
    assert web.status(shutdown, web.login("flower"), "POST", headers={"Origin": "http://other.test"}) == 403
    assert web.status(shutdown, method="POST") == 401


def test_grafana_refuses_its_default_password(stack: Stack) -> None:
    grafana = enabled(stack, "grafana")
    for login in (None, ("admin", "admin"), ("admin", "")):
        assert web.status(f"{grafana}/api/admin/settings", login) == 401, login
    assert web.status(f"{grafana}/metrics") == 401
    assert web.status(f"{grafana}/api/admin/settings", web.login("grafana")) == 200
