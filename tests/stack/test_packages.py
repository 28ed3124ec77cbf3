"""`make sbom`: what it lists for the app's image is what is locked, on the base image."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from stack.stack import ROOT, Stack


@pytest.fixture(scope="module")
def listed(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """The package URLs of the app's image, and of its base image."""
    folder = tmp_path_factory.mktemp("sbom")
    base = re.findall(r"^PYTHON_IMAGE=(.*)$", (ROOT / ".env").read_text(), re.MULTILINE)[-1]
    subprocess.run([sys.executable, ROOT / "scripts/sbom.py", stack.celery_image, base], cwd=folder, check=True)
    return {name: urls(folder / f"sbom/{name}.json") for name in ("celery", "python")}


def urls(file: Path) -> set[str]:
    return {component["purl"] for component in json.loads(file.read_text())["components"]}


def test_it_lists_every_locked_package_and_no_other(listed: dict[str, set[str]]) -> None:
    lock = (ROOT / "services/celery/requirements.txt").read_text()
    locked = {f"pkg:pypi/{name}@{version}" for name, version in re.findall(r"^([\w.-]+)==(\S+)", lock, re.MULTILINE)}
    (library,) = (url for url in listed["celery"] if url.startswith("pkg:pypi/celery-durable@"))
    assert {url.partition("@")[0] for url in locked} >= {"pkg:pypi/celery", "pkg:pypi/redis", "pkg:pypi/kombu"}
    assert locked | {library} <= {normal(url) for url in listed["celery"]}
    assert {normal(url) for url in listed["celery"] - listed["python"]} <= locked | {library}


def normal(url: str) -> str:
    """With the name as in a lock file."""
    name, _, version = url.partition("@")
    return f"{re.sub('[._]', '-', name)}@{version}" if name.startswith("pkg:pypi") else url


def test_it_lists_the_debian_packages_of_the_base_image(listed: dict[str, set[str]]) -> None:
    debian = {name: {url for url in found if url.startswith("pkg:deb/")} for name, found in listed.items()}
    assert any(url.startswith("pkg:deb/debian/libc6@") for url in debian["celery"])
    assert debian["celery"] == debian["python"]
