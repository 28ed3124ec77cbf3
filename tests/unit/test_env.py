"""scripts/env.sh creates .env and the secrets once, and does not change existing ones."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the files that the script needs."""
    for path in ("scripts", "services/redis"):
        shutil.copytree(ROOT / path, tmp_path / path)
    shutil.copy(ROOT / ".env.example", tmp_path)
    return tmp_path


def run(project: Path) -> str:
    done = subprocess.run(["scripts/env.sh"], cwd=project, capture_output=True, text=True, check=True)
    return done.stdout


def contents(project: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in [project / ".env", *(project / "secrets").iterdir()]}


def test_a_second_run_changes_nothing(project: Path) -> None:
    assert "env: created .env from .env.example" in run(project)
    made = contents(project)
    assert run(project) == ""
    assert contents(project) == made


def test_secrets_are_random_and_no_access_list_names_a_password(project: Path) -> None:
    run(project)
    first = contents(project)
    shutil.rmtree(project / "secrets")
    run(project)
    for name, content in contents(project).items():
        if name.endswith("_password"):
            assert content != first[name]
            assert len(content) == 32
            assert not any(content in each for file, each in contents(project).items() if file.endswith(".acl"))


@pytest.mark.parametrize("end", ["\n", ""])
def test_a_new_setting_is_added_and_the_rest_stays(project: Path, end: str) -> None:
    run(project)
    lines = [line for line in (project / ".env").read_text().splitlines() if not line.startswith("MAX_MESSAGE_BYTES=")]
    mine = "\n".join([*lines, "FLOWER_PORT=7777"]) + end
    (project / ".env").write_text(mine)
    output = run(project)
    knob = next(line for line in (ROOT / ".env.example").read_text().splitlines() if "MAX_MESSAGE_BYTES=" in line)
    assert output == f"env: added to .env: {knob} (.env.example explains it)\n"
    assert (project / ".env").read_text() == f"{mine.rstrip()}\n{knob}\n"


def test_a_changed_template_is_rendered_again(project: Path) -> None:
    run(project)
    template = project / "services/redis/broker.acl.template"
    template.write_text(template.read_text() + "user more on nopass\n")
    assert run(project) == "env: created secrets/redis_broker.acl\n"
    assert (project / "secrets/redis_broker.acl").read_text().endswith("\nuser more on nopass\n")
