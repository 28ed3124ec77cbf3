"""A project made by `make new` passes the checks of its own `make lint`."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("new") / "shop"
    subprocess.run([sys.executable, ROOT / "scripts/new.py", folder], check=True, capture_output=True)
    return folder


@pytest.mark.parametrize("check", ["ruff check", "ruff format --check", "mypy"])
def test_a_new_project_passes(check: str, project: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *check.split()], cwd=project, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_of_the_demo_is_left(project: Path) -> None:
    marked = [path for path in project.rglob("*") if path.is_file() and b"# <<< demo" in path.read_bytes()]
    assert marked == []
