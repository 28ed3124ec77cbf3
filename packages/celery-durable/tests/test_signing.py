"""Celery's serializer `auth`: what is not signed by a trusted key does not run, and disturbs no worker.

The serializer belongs to the whole process, so the messages are published by processes of their own.
"""

import base64
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from celery_durable.dead_letters import Reason

from .conftest import NewProject
from .poll import poll_until
from .project import SOURCES, Project, run_python

TASKS = """
@app.task
def add(x, y):
    note("ran", f"{x} + {y}")

if app.conf.task_serializer == "auth":
    app.setup_security()
"""


def make_key(folder: Path, name: str) -> None:
    """A private key and its certificate."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    owner, now = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]), datetime.now(UTC)
    certificate = x509.CertificateBuilder(owner, owner, key.public_key(), 7, now, now + timedelta(days=1))
    pem, private = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / f"{name}.key").write_bytes(key.private_bytes(pem, private, serialization.NoEncryption()))
    (folder / f"{name}.pem").write_bytes(certificate.sign(key, hashes.SHA256()).public_bytes(pem))


def signing(folder: Path, name: str = "ours") -> dict[str, Any]:
    """The settings of a program that signs with a key."""
    if not (folder / f"{name}.key").exists():
        make_key(folder, name)
    return {
        "task_serializer": "auth",
        "accept_content": ["auth"],
        "result_accept_content": ["json"],
        "security_key": f"{folder}/{name}.key",
        "security_certificate": f"{folder}/{name}.pem",
        "security_cert_store": f"{folder}/ours.pem",
    }


def publish(project: Project, call: str, conf: dict[str, Any] | None = None) -> str:
    """Run a call in a process that has the project's app, with more settings; returns what it prints."""
    security = "app.setup_security()" if conf else ""
    source = f"from project import *\napp.conf.update({conf or {}!r})\n{security}\nprint({call})"
    done = run_python(source, PYTHONPATH=f"{SOURCES}:{project.folder}")
    assert done.returncode == 0, done.stderr
    return done.stdout


def letters(project: Project) -> dict[str, tuple[str, str]]:
    """Reason and error of each dead letter by its task's id."""
    entries = project.client.xrange("celery-durable:dead-letters")
    return {fields["id"]: (fields["reason"], fields["error"]) for _, fields in entries}


def encoded(body: bytes) -> str:
    return base64.b64encode(body).decode()


def test_only_what_a_trusted_key_has_signed_runs(new_project: NewProject, tmp_path: Path) -> None:
    project = new_project(TASKS, conf=signing(tmp_path))
    publish(project, "add.apply_async((1, 1), task_id='unknown key')", signing(tmp_path, "theirs"))
    publish(project, "add.apply_async((1, 2), task_id='signed')")
    client = project.client
    signed = json.loads(client.lindex("celery", 0))
    fields = base64.b64decode(base64.b64decode(signed["body"]))
    plain = encoded(json.dumps([[1, 3], {}, {}]).encode())
    others: dict[str, dict[str, Any]] = {
        "changed": {"body": encoded(base64.b64encode(fields.replace(b"[1, 2]", b"[1, 4]")))},
        "not signed": {"body": plain},
        "JSON": {"body": plain, "content-type": "application/json"},
        "text": {"body": plain, "content-type": "application/text"},
        "no content type": {"body": plain, "content-type": None},
        "empty": {"body": ""},
    }
    for number, (name, changes) in enumerate(others.items()):
        properties = {**signed["properties"], "delivery_tag": f"tag-{number}"}
        headers = {**signed["headers"], "id": name}
        client.lpush("celery", json.dumps({**signed, **changes, "headers": headers, "properties": properties}))
    worker = project.worker("-c", "1")
    assert project.wait_noted("ran") == ["1 + 2"]
    poll_until(lambda: letters(project).keys() == {"unknown key", *others}, "a dead letter of each other message")
    assert {reason for reason, _ in letters(project).values()} == {Reason.MALFORMED}
    assert "Unknown certificate" in letters(project)["unknown key"][1]
    assert letters(project)["changed"][1].startswith("DecodeError: Unable to deserialize")
    assert "untrusted content of type json" in letters(project)["JSON"][1]

    project.stock_app.control.broadcast("shutdown")
    worker.wait_for("remote control: refused, it cannot be read: Refusing to deserialize untrusted content")
    publish(project, "add.delay(1, 5)")
    assert project.wait_noted("ran", 2) == ["1 + 2", "1 + 5"]
    assert "pong" in publish(project, "app.control.ping(timeout=10, limit=1)")
    assert "Traceback" not in worker.log


def test_a_worker_without_keys_refuses_what_is_signed(new_project: NewProject, tmp_path: Path) -> None:
    project = new_project(TASKS)
    worker = project.worker("-c", "1")
    publish(project, "add.apply_async((1, 1), task_id='signed')", signing(tmp_path))
    poll_until(lambda: "signed" in letters(project), "a dead letter")
    assert letters(project)["signed"] == (
        Reason.MALFORMED,
        "TypeError: body: str, not a list of arguments, keyword arguments and embed",
    )
    publish(project, "app.control.broadcast('shutdown')", signing(tmp_path))
    worker.wait_for("remote control: refused, it is no command: body: str")
    assert project.app.control.ping(timeout=10, limit=1) == [{"worker@test": {"ok": "pong"}}]
    assert "Traceback" not in worker.log


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ([], "body: list"),
        ({}, "method: NoneType"),
        ({"method": "ping", "arguments": [1]}, "arguments: list"),
        ({"method": "ping", "destination": 7}, "destination: int"),
        ({"method": "ping", "pattern": "*", "matcher": 7}, "matcher: int"),
        ({"method": "ping", "reply_to": {"exchange": "reply"}}, "reply_to: routing_key: NoneType"),
    ],
    ids=str,
)
def test_a_broadcast_that_is_no_command_is_refused(
    app: Any, command: object, error: str, caplog: pytest.LogCaptureFixture
) -> None:
    app.control.mailbox.Node("worker@test").handle_message(command)
    assert caplog.messages == [f"remote control: refused, it is no command: {error}"]


def test_a_command_is_run(app: Any) -> None:
    node = app.control.mailbox.Node("worker@test", handlers={"ping": lambda state, **given: given})
    command = {"method": "ping", "arguments": {"of": 1}, "destination": ["worker@test"], "pattern": None}
    assert node.handle_message(command) == {"of": 1}
