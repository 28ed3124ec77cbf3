"""A project made by `make new` passes the checks of its own `make lint`."""

import re
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


@pytest.mark.parametrize("name", ["services/celery/requirements.txt", "tests/requirements.txt"])
def test_its_locks_have_what_the_remaining_packages_need(name: str, project: Path) -> None:
    def packages(lock: str) -> dict[str, str]:
        return {entry.split("==")[0]: entry for entry in re.split(r"(?m)^(?=[a-z])", lock) if entry}

    left = packages((project / name).read_text())
    for package, entry in packages((ROOT / name).read_text()).items():
        users = set(re.findall(r"^    # (?:via|  ) *([a-z]\S*)$", entry, re.MULTILINE)) & left.keys()
        assert package in left or not users, f"{package} is needed by {users}"


def test_nothing_of_the_demo_is_left(project: Path) -> None:
    marked = [path for path in project.rglob("*") if path.is_file() and b"# <<< demo" in path.read_bytes()]
    assert marked == []
