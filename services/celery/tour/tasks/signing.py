"""Signed messages: `python -m tour.tasks.signing QUEUE` publishes one, and prints what signing costs.

Serializers belong to the whole process, so the tour itself does not sign.
"""

import base64
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from kombu.serialization import dumps, loads

from tasks import basic


def make_key(folder: Path, name: str) -> None:
    """A private key and its certificate, as of `openssl req -x509 -newkey rsa:2048 -nodes`."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    owner, now = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]), datetime.now(UTC)
    serial = x509.random_serial_number()
    certificate = x509.CertificateBuilder(owner, owner, key.public_key(), serial, now, now + timedelta(days=1))
    encoding, no_password = serialization.Encoding.PEM, serialization.NoEncryption()
    (folder / f"{name}.key").write_bytes(key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, no_password))
    (folder / f"{name}.pem").write_bytes(certificate.sign(key, hashes.SHA256()).public_bytes(encoding))


def settings_with(folder: str, name: str) -> dict[str, Any]:
    """Celery's settings of a client or a worker with this key; then call `app.setup_security()`."""
    return {
        "task_serializer": "auth",
        "accept_content": ["auth"],
        "result_accept_content": ["json"],  # results are not signed
        "security_key": f"{folder}/{name}.key",
        "security_certificate": f"{folder}/{name}.pem",
        "security_cert_store": f"{folder}/{name}.pem",  # trusted; or *.pem
    }


def changed(message: dict[str, Any], old: bytes, new: bytes) -> dict[str, Any]:
    """A message with a part of its signed body replaced."""
    body = base64.b64decode(base64.b64decode(message["body"])).replace(old, new)
    return {**message, "body": base64.b64encode(base64.b64encode(body)).decode()}


def cpu_seconds(call: Callable[[], object]) -> float:
    """The CPU time of many calls."""
    begun = time.process_time()
    for _ in range(100):
        call()
    return time.process_time() - begun


def costs() -> tuple[float, float]:
    """How many times as much CPU `auth` takes as JSON: to encode a body, and to decode it."""
    body = [[1, 1], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
    (json_type, _, plain), (auth_type, _, signed) = dumps(body, "json"), dumps(body, "auth")
    return (
        cpu_seconds(lambda: dumps(body, "auth")) / cpu_seconds(lambda: dumps(body, "json")),
        cpu_seconds(lambda: loads(signed, auth_type, "utf-8", {auth_type}))
        / cpu_seconds(lambda: loads(plain, json_type, "utf-8", {json_type})),
    )


if __name__ == "__main__":
    import tour.app  # noqa: F401 - the settings in TOUR_PROCESS

    basic.add.apply_async((1, 1), queue=sys.argv[1])
    print(*costs(), sep="\n")
