"""`make audit`: pip-audit reads every lock file, and what it cannot look up is not taken for safe."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = [path for path in ROOT.glob("*/*/*requirements.txt") if ".venv" not in path.parts]
LOCKS += [ROOT / "tests/requirements.txt", ROOT / "offline/celery-exporter/exporter.txt"]
LOCKS += [ROOT / "bench/requirements.txt"]  # demo


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: str(lock.relative_to(ROOT)))
def test_each_package_of_a_lock_is_pinned_and_hashed_as_pip_audit_requires(lock: Path) -> None:
    tool = Path(sys.executable).parent / "pip-audit"
    options = ["--require-hashes", "--disable-pip", "--dry-run", "--progress-spinner=off"]
    done = subprocess.run([tool, *options, "--requirement", lock], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (number,) = re.findall(r"would have audited (\d+) packages", done.stderr)
    markers = re.findall(r"^[\w.-]+(?:\[.*\])?==\S+(.*)$", lock.read_text(), re.MULTILINE)
    assert sum(";" not in marker for marker in markers) <= int(number) <= len(markers)


def test_without_the_service_an_audit_fails_with_one_line() -> None:
    nothing = "http://127.0.0.1:1"
    environment = {**os.environ, "HTTPS_PROXY": nothing, "https_proxy": nothing, "NO_PROXY": "", "no_proxy": ""}
    done = subprocess.run([ROOT / "scripts/audit.sh"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.fullmatch(r"audit: no answer from the vulnerability service \(.+\)\n", done.stderr)
