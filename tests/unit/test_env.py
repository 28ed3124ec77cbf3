"""scripts/env.sh creates .env and the secrets once, and does not change existing ones."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the files that the script needs."""
    for path in ("scripts", "services/redis", "prometheus"):
        shutil.copytree(ROOT / path, tmp_path / path)
    for path in ("bench", "grafana", "offline", "packages", "tests"):
        (tmp_path / path).mkdir()
    shutil.copy(ROOT / ".env.example", tmp_path)
    return tmp_path


def run(project: Path, *arguments: str) -> str:
    done = subprocess.run(["scripts/env.sh", *arguments], cwd=project, capture_output=True, text=True, check=True)
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


SERVICES = ("redis_celery", "redis_exporter", "flower", "grafana", "prometheus", "alertmanager")
PASSWORDS = {f"{service}_password" for service in SERVICES}
ACLS = {"redis_broker.acl", "redis_results.acl"}


@pytest.mark.parametrize(
    ("replaced", "changed"),
    [
        ("all", {*PASSWORDS, *ACLS, "redis_exporter.json"}),
        ("redis_celery_password", {"redis_celery_password", *ACLS}),
        ("redis_exporter_password", {"redis_exporter_password", *ACLS, "redis_exporter.json"}),
        ("flower_password", {"flower_password"}),
    ],
)
def test_passwords_are_replaced_with_what_follows_from_them(project: Path, replaced: str, changed: set[str]) -> None:
    run(project)
    before = contents(project)
    assert {name for name in before if name.endswith("_password")} == PASSWORDS
    run(project, replaced)
    after = contents(project)
    assert {name for name in after if after[name] != before[name]} == changed
    assert all(len(after[name]) == 32 for name in PASSWORDS)


@pytest.mark.parametrize("wrong", ["flower", ".*", "flower_password grafana_password"])
def test_a_wrong_name_of_a_password_changes_nothing(project: Path, wrong: str) -> None:
    run(project)
    before = contents(project)
    done = subprocess.run(["scripts/env.sh", wrong], cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"env: SECRET={wrong}: there is no such password; choose one of\nenv: ")
    assert {line.removeprefix("env: ") for line in done.stderr.splitlines()[1:]} == PASSWORDS
    assert contents(project) == before


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


def test_what_containers_read_is_readable_for_them_after_a_clone_with_umask_077(project: Path) -> None:
    for path in ("services/redis/redis.conf", "prometheus/rules", "prometheus/alertmanager.yml"):
        (project / path).chmod(0o700 if (project / path).is_dir() else 0o600)
    run(project)
    wrong = [
        path
        for folder in ("services", "prometheus", "grafana", "packages")
        for path in [project / folder, *(project / folder).rglob("*")]
        if path.stat().st_mode & 0o004 == 0 or (path.is_dir() and path.stat().st_mode & 0o001 == 0)
    ]
    assert wrong == []


def test_a_line_with_spaces_is_not_overridden_by_a_default(project: Path) -> None:
    (project / ".env").write_text("MAX_MESSAGE_BYTES = 5\n")
    assert "MAX_MESSAGE_BYTES" not in run(project)
    assert "MAX_MESSAGE_BYTES=" not in (project / ".env").read_text()


@pytest.mark.parametrize("existing", [None, "COMPOSE_PROJECT_NAME=mine\n" * 50])
def test_a_full_disk_leaves_no_part_of_env(project: Path, existing: str | None) -> None:
    """A file-size limit fails as a full disk does: after a part is written."""
    if existing is not None:
        (project / ".env").write_text(existing)
    command = "trap '' XFSZ; ulimit -f 1; exec scripts/env.sh"  # 1 KiB
    done = subprocess.run(["bash", "-c", command], cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "env: .env could not be written; the reason is above. It was not changed.\n" in done.stderr
    assert not (project / ".env.new").exists()
    assert ((project / ".env").read_text() if (project / ".env").exists() else None) == existing


def test_a_full_disk_leaves_no_part_of_a_secret(project: Path) -> None:
    run(project)
    secrets = project / "secrets"
    (secrets / "flower_password").unlink()
    command = "trap '' XFSZ; ulimit -f 0; exec scripts/env.sh"
    done = subprocess.run(["bash", "-c", command], cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "env: secrets/flower_password could not be written" in done.stderr
    assert not [path for path in secrets.iterdir() if path.name in ("flower_password", ".flower_password.new")]


def test_a_full_disk_leaves_env_as_it_was_when_scaling(project: Path) -> None:
    run(project)
    made = contents(project)
    command = "trap '' XFSZ; ulimit -f 0; exec scripts/scale.sh LOW=4"
    done = subprocess.run(["bash", "-c", command], cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "scale: .env could not be written; the reason is above. It was not changed.\n" in done.stderr
    assert contents(project) == made
