"""Real workers with the atomic transport and a Redis that accepts only TLS."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from .poll import poll_until
from .project import Project
from .redis_server import RedisServer
from .test_atomic import LEASE
from .test_atomic_workers import LONG, TASKS


def write_certificate(folder: Path) -> None:
    """Of 127.0.0.1, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "redis")]), datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (folder / "cert.pem").write_bytes(certificate.public_bytes(pem))
    (folder / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    for file in folder.iterdir():
        file.chmod(0o644)  # a container reads it as another user


@pytest.fixture(scope="module")
def tls_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    folder = tmp_path_factory.mktemp("tls")
    folder.chmod(0o755)
    write_certificate(folder)
    server = RedisServer(tls=folder)
    yield server
    server.remove()


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_workers_wait_fetch_renew_and_redeliver(tls_redis: RedisServer, tmp_path: Path, pool: str) -> None:
    tls_redis.reset()
    with Project(tmp_path, tls_redis.url, TASKS, LONG, **LEASE).open() as project:
        killed = project.worker("-P", pool, "-c", "1", name="killed")

        def is_told_of_new_messages() -> bool:
            return any("t" in client["flags"] for client in project.client.client_list())

        poll_until(is_told_of_new_messages, "the worker to have CLIENT TRACKING on")
        project.app.tasks["quick"].apply_async(("delayed",), countdown=2)
        project.app.tasks["quick"].delay("now")
        assert project.wait_noted("ran", 2) == ["now", "delayed"]
        project.app.tasks["slow"].delay("long", 3 * LEASE["lease"])
        project.wait_noted("started")
        for name in ("other", "third"):
            project.worker("-P", pool, "-c", "1", name=name)
        killed.kill()
        project.wait_noted("ran", 3)
        poll_until(lambda: not project.client.exists("unacked", "celery"), "the message to be acknowledged")
        assert project.noted("started") == ["long", "long"]
