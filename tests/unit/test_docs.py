"""The example of docs/delivery.md, by its effect, and the tests that SECURITY.md names. Other pages are followed on a
stack, in tests/readme."""

import re
import runpy
from pathlib import Path

import pytest
from redis import Redis

from celery_durable import Durable

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/delivery.md").read_text()


def test_the_task_of_the_page_on_delivery_applies_its_effect_once(
    client: Redis, monkeypatch: pytest.MonkeyPatch, eager: None, tmp_path: Path
) -> None:
    monkeypatch.setattr(Durable, "store", client)
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    (tmp_path / "payments.py").write_text(block)
    credit = runpy.run_path(str(tmp_path / "payments.py"))["credit"]
    credit.delay("payment-1", "alice", 250).get()
    credit.delay("payment-1", "alice", 250).get()
    assert client.get("balance:alice") == "250"
    credit.delay("payment-2", "alice", 50).get()
    assert client.get("balance:alice") == "300"
    assert all(key.startswith("balance:") for key in client.scan_iter()), "the page names a right to these keys only"


def test_each_test_that_the_page_on_security_names_exists() -> None:
    tests = "".join(file.read_text() for folder in ("tests", "packages") for file in (ROOT / folder).rglob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", (ROOT / "SECURITY.md").read_text())
    assert named
    assert [name for name in named if f"def {name}(" not in tests] == []
