"""compose.yaml and .env.example agree, and every service is written in the same order."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
COMPOSE = (ROOT / "compose.yaml").read_text()
EXAMPLE = (ROOT / ".env.example").read_text()

SETTINGS = set(re.findall(r"^(\w+)=", EXAMPLE, re.MULTILINE))
# Image, command, configuration, addresses, start and stop, limits.
ORDER = [
    "<<",
    "restart",
    "init",
    "read_only",
    "cap_drop",
    "security_opt",
    "logging",
    "image",
    "build",
    "pull_policy",
    "profiles",
    "entrypoint",
    "command",
    "user",
    "environment",
    "secrets",
    "volumes",
    "tmpfs",
    "networks",
    "dns_opt",
    "ports",
    "depends_on",
    "healthcheck",
    "stop_signal",
    "stop_grace_period",
    "mem_limit",
    "cpus",
    "pids_limit",
    "scale",
]


def written_keys() -> dict[str, list[str]]:
    """Keys of each service and each x- block, in the order in which they are written."""
    document = {key.value: node for key, node in yaml.compose(COMPOSE).value}  # type: ignore[union-attr]
    blocks = {name: node for name, node in document.items() if isinstance(node, yaml.MappingNode) and name[:2] == "x-"}
    blocks.update({key.value: node for key, node in document["services"].value})
    return {name: [key.value for key, _ in node.value] for name, node in blocks.items()}


def test_every_variable_is_explained_in_env_example_and_every_setting_is_used() -> None:
    used = set(re.findall(r"\$\{(\w+)", COMPOSE))
    assert used - SETTINGS == set(), "used in compose.yaml, missing in .env.example"
    assert SETTINGS - used - {"COMPOSE_PROFILES"} == set(), "explained in .env.example, used nowhere"


def test_every_setting_has_a_comment_above_it_or_above_its_group() -> None:
    for name in SETTINGS:
        above = EXAMPLE[: EXAMPLE.index(f"\n{name}=")].splitlines()
        while above and re.match(r"\w+=", above[-1]):
            above.pop()
        assert above, name
        assert above[-1].startswith("#"), f"{name}: no comment"


@pytest.mark.parametrize("service", written_keys())
def test_every_service_is_written_in_the_same_order(service: str) -> None:
    keys = written_keys()[service]
    assert keys == sorted(keys, key=ORDER.index)


@pytest.mark.parametrize("word", ["container_name", ":latest", "start_interval", "privileged", "network_mode"])
def test_compose_does_without(word: str) -> None:
    assert word not in COMPOSE


def config(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run `docker compose config`, without the environment's settings."""
    command = ["docker", "compose", *options, "--profile", "*", "config", "--quiet"]
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_docker_compose_without_env_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text(COMPOSE)
    done = config(tmp_path)
    assert done.returncode != 0
    assert done.stderr.endswith(": run make env first\n")
    assert done.stderr.count("\n") == 1, done.stderr


def test_docker_compose_accepts_the_file_with_the_defaults() -> None:
    done = config(ROOT, "--env-file", ".env.example")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "compose warns"
