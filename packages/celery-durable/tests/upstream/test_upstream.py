"""The tests of kombu's Redis transport and Celery's integration tests, with the library and without it.

Their source is that of the installed versions, unchanged. Each file runs three times: with kombu and Celery as they
are, with the library's stock transport, and with the atomic one. outcomes.toml has each test whose outcome differs.
"""

import json
import os
import subprocess
import sys
import tarfile
import tomllib
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from time import monotonic

import pytest

from ..redis_server import RedisServer

pytestmark = pytest.mark.upstream

HERE = Path(__file__).parent
ROOT = HERE.parents[3]
CACHE = ROOT / ".cache/upstream"
KNOWN = tomllib.loads((HERE / "outcomes.toml").read_text())

TRANSPORTS = ("unmodified", "stock", "atomic")
# Celery's fixtures are a plugin that pytest-celery registers, which needs Docker.
OPTIONS = {"kombu": [], "celery": ["-p", "celery.contrib.pytest"]}
FILES = (
    "kombu/t/unit/transport/test_redis.py",
    "kombu/t/integration/test_redis.py",
    "kombu/t/integration/test_redis_brpop_qos.py",
    *(
        f"celery/t/integration/test_{name}.py"
        for name in (
            *("backend_leak_in_fixture_teardown", "beat", "canvas", "connection_recovery", "events_state_memory_leak"),
            *("group_chains", "inspect", "loader", "logfile_format", "mem_leak_in_exception_handling", "redis_backend"),
            *("request_backend_down", "security", "serialization", "tasks", "upgrade", "worker"),
        )
    ),
)
OTHER_BACKENDS = {"test_backend.py", "test_cache_backend.py", "test_database_backend.py"}  # of results, in Celery


@pytest.fixture(scope="session")
def sources() -> Path:
    """The folder with the tests of the installed versions, by package."""
    versions = [f"{package}=={version(package)}" for package in OPTIONS]
    folder = CACHE / "-".join(versions)
    if not folder.exists():
        download(versions, CACHE / "download")
        (CACHE / "download").rename(folder)
    return folder


def download(versions: list[str], into: Path) -> None:
    """The source distributions, with the hashes of tests/requirements.txt."""
    lines = (ROOT / "tests/requirements.txt").read_text().replace("\\\n", "").splitlines()
    pinned = [line for line in lines if line.split(" ")[0] in versions]
    assert len(pinned) == len(versions), f"{versions} are installed, tests/requirements.txt has others; make venv"
    into.mkdir(parents=True, exist_ok=True)
    requirements = into / "requirements.txt"
    requirements.write_text("\n".join(pinned))
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download"]
    only_source = ["--no-deps", "--no-binary", ":all:", "--require-hashes", "--requirement", str(requirements)]
    subprocess.run([*pip, *only_source, "--dest", str(into)], check=True)
    for package in OPTIONS:
        [archive] = into.glob(f"{package}-*.tar.gz")
        top = archive.name.removesuffix(".tar.gz")
        wanted = tuple(f"{top}/{name}" for name in ("t/", "pyproject.toml", "setup.cfg"))  # not the package itself
        with tarfile.open(archive) as tar:
            tar.extractall(into, [each for each in tar if each.name.startswith(wanted)], filter="data")
        (into / top).rename(into / package)


def test_all_files_are_known(sources: Path) -> None:
    found = {path.name for path in (sources / "celery/t/integration").glob("test_*.py")}
    assert found == {Path(path).name for path in FILES if path.startswith("celery/")} | OTHER_BACKENDS


@pytest.mark.parametrize("path", FILES)
def test_outcomes(path: str, sources: Path) -> None:
    print(f"\n{path}", end="")
    with ThreadPoolExecutor() as pool:
        runs = dict(zip(TRANSPORTS, pool.map(lambda transport: run(sources, path, transport), TRANSPORTS), strict=True))
    unmodified = runs.pop("unmodified")
    unstable = entries("unstable", "unmodified", unmodified)
    problems = [f"{test}: fails without the library" for test in failed(unmodified) if test not in unstable]
    for transport, outcomes in runs.items():
        known, skipped = (entries(kind, transport, unmodified) for kind in ("differs", "unstable"))
        differ = {test for test in unmodified | outcomes if unmodified.get(test) != outcomes.get(test)}
        differ -= unstable | skipped
        problems += [f"{test}: {outcomes.get(test)} with {transport}" for test in sorted(differ - known)]
        problems += [f"{test}: no longer differs with {transport}" for test in sorted(known - differ)]
    assert not problems, "\n".join([f"outcomes.toml does not have what was seen; logs are in {CACHE}:", *problems])


def test_entries_name_known_files() -> None:
    tests = [test for each in (*KNOWN["differs"], *KNOWN["unstable"]) for test in each["tests"]]
    assert {test.split("::")[0] for test in tests} <= {*FILES}


def entries(kind: str, transport: str, tests: Iterable[str]) -> set[str]:
    """The tests that outcomes.toml names; a name without parameters stands for the test with each of them."""
    named = [name for each in KNOWN[kind] if transport in each["transports"] for name in each["tests"]]
    return {test for test in tests for name in named if test == name or test.startswith(f"{name}[")}


def failed(outcomes: dict[str, str]) -> list[str]:
    return [test for test, outcome in outcomes.items() if outcome == "failed"]


def run(sources: Path, path: str, transport: str) -> dict[str, str]:
    """Outcomes by test. A test that fails gets a second chance: many of these have short time-outs."""
    started = monotonic()
    outcomes = run_once(sources, path, transport, [path])
    retried = failed(outcomes)
    if retried:
        outcomes |= run_once(sources, path, transport, retried)
    counts = Counter(outcomes.values())
    counts["passed at the second try"] = len(retried) - len(failed(outcomes))
    numbers = ", ".join(f"{number} {outcome}" for outcome, number in counts.items() if number)
    print(f"\n  {transport}: {numbers} in {monotonic() - started:.0f} s", end="", flush=True)
    return outcomes


def run_once(sources: Path, path: str, transport: str, tests: list[str]) -> dict[str, str]:
    package = path.split("/")[0]
    log = CACHE / f"{package}-{Path(path).parent.name}-{Path(path).stem}-{transport}.log"
    result = log.with_suffix(".json")
    result.unlink(missing_ok=True)
    server = RedisServer()
    try:
        with log.open("w" if tests == [path] else "a") as output:
            subprocess.run(
                [
                    *(sys.executable, "-m", "pytest", "--quiet", "-p", "no:cacheprovider", "-W", "ignore"),
                    *("-p", "library_plugin", *OPTIONS[package]),
                    *(test.removeprefix(f"{package}/") for test in tests),
                ],
                cwd=sources / package,
                env=environment(server) | {"UPSTREAM_TRANSPORT": transport, "UPSTREAM_OUTCOMES": str(result)},
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=3600,
                check=False,
            )
    finally:
        server.remove()
    assert result.exists(), f"{path} with {transport}: the run ended early; see {log}"
    return {f"{package}/{test}": outcome for test, outcome in json.loads(result.read_text()).items()}


def environment(server: RedisServer) -> dict[str, str]:
    """What the tests of kombu and Celery read."""
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # for the command `celery`
        "PYTHONPATH": str(HERE),
        "REDIS_HOST": "127.0.0.1",
        "REDIS_PORT": str(server.port),
        "REDIS_6379_TCP": str(server.port),
        "TEST_BROKER": server.url,
        "TEST_BACKEND": server.url,
        "WORKER_LOGLEVEL": "info",
    }
