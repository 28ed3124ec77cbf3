"""`make check` (scripts/check.py): one list of all that is wrong, and nothing is changed."""

import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from settings import load_settings

ROOT = Path(__file__).parents[2]
HEADER = "check: these are wrong; nothing was changed:\n"
EXAMPLE = (ROOT / ".env.example").read_text()
SETTINGS = dict(re.findall(r"^(\w+)=(.*)$", EXAMPLE, re.MULTILINE))
# Answers from files: `started` (folders of the project's containers), `publishing` (containers of a port). The docker
# named in `engine` runs containers; without that file there are no images.
DOCKER = """#!/bin/sh
here=$(dirname "$0")
echo "$*" >>"$here/calls"
case "$*" in
    *publish=*) cat "$here/publishing" ;;
    ps*) cat "$here/started" ;;
    *) [ ! -e "$here/engine" ] || exec "$(cat "$here/engine")" "$@"; exit 125 ;;
esac
"""


@dataclass
class Project:
    """A copy of the files that are checked, with a docker that only answers."""

    folder: Path
    docker: Path

    def run(self, *command: str | Path, **environment: str) -> tuple[int, str]:
        """Run a command, which must change no file and no container; returns its exit code and what it printed."""
        before = self._files()
        clean = {name: value for name, value in os.environ.items() if name not in {*SETTINGS, "MAKEFLAGS", "MAKELEVEL"}}
        path = f"{self.docker}:{clean['PATH']}"
        done = subprocess.run(
            command, cwd=self.folder, env={**clean, "PATH": path, **environment}, capture_output=True, text=True
        )
        assert self._files() == before
        calls = (self.docker / "calls").read_text().splitlines()
        assert not [call for call in calls if not call.startswith(("ps ", "run --rm --pull=never "))]
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout + done.stderr

    def check(self, *arguments: str, **environment: str) -> tuple[int, str]:
        return self.run(sys.executable, "-B", "scripts/check.py", *arguments, **environment)

    def _files(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}

    def set(self, text: str) -> int:
        """Replace the line of a setting, or add the lines at the end; returns the first line's number."""
        env = self.folder / ".env"
        lines = env.read_text().splitlines()
        name = re.sub("^export ", "", text).partition("=")[0].strip()
        number = next((n for n, line in enumerate(lines) if line.startswith(f"{name}=")), len(lines))
        lines[number : number + 1] = [text]
        env.write_bytes(("\n".join(lines) + "\n").encode())
        return number + 1


@pytest.fixture
def project(tmp_path: Path) -> Project:
    folder = tmp_path / "project"
    for name in ("compose.yaml", ".env.example", "Makefile", "scripts", "prometheus", "services/celery"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        source = ROOT / name
        shutil.copytree(source, folder / name) if source.is_dir() else shutil.copy(source, folder / name)
    (folder / ".env").write_text(re.sub("_PORT=.*", "_PORT=0", EXAMPLE))
    docker = tmp_path / "docker"
    docker.mkdir()
    for file in ("calls", "started", "publishing"):
        (docker / file).touch()
    (docker / "docker").write_text(DOCKER)
    (docker / "docker").chmod(0o755)
    return Project(folder, docker)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def port_of(listener: socket.socket) -> int:
    port: int = listener.getsockname()[1]
    return port


def test_the_defaults_are_right(project: Project) -> None:
    assert project.check() == (0, "")


def test_the_defaults_are_right_with_their_ports(project: Project) -> None:
    """With the ports of .env.example, which may be in use here: no other line."""
    shutil.copy(ROOT / ".env.example", project.folder / ".env")
    code, output = project.check()
    assert all("is taken by" in line for line in output.removeprefix(HEADER).splitlines()), output
    assert code == bool(output)


def test_each_setting_has_a_rule(project: Project) -> None:
    """An empty value is wrong, except of settings that may be empty."""
    optional = {"COMPOSE_PROFILES"}
    optional |= {"CORPUS_DIR", "TRAFFIC"}  # demo
    for name in SETTINGS:
        project.set(f"{name}=")
    _, output = project.check()
    assert set(re.findall(r"^  \.env line \d+: (\w+)=: ", output, re.MULTILINE)) == set(SETTINGS) - optional


WRONG = [
    (
        "COMPOSE_PROJECT_NAME=My Shop",
        "must be lower-case letters, digits, - and _, the first a letter or a digit, such as",
    ),
    (
        "COMPOSE_PROFILES=grafna,events",
        "no profile 'grafna'; choose from: events, grafana, separated by commas without",
    ),
    (
        "COMPOSE_PROFILES=grafana, events",
        "no profile ' events'; choose from: events, grafana, separated by commas without",
    ),
    ("COMPOSE_PROFILES=tools", "no profile 'tools'; choose from: events, grafana, separated by commas without spaces"),
    ("TASK_EVENTS=yes", "must be true or false, such as true"),
    ("INTERNAL_NETWORKS=1", "must be true or false, such as true"),
    ("TRANSPORT=redis", "must be stock or atomic, such as atomic"),
    ("WORKER_LOW_REPLICAS=-1", "must be a number of containers, 0 to 999, such as 1"),
    ("WORKER_LOW_REPLICAS=1000", "must be a number of containers, 0 to 999, such as 1"),
    ("WORKER_HIGH_CONCURRENCY=0", "must be a number of processes, 1 or above, such as 2"),
    ("FLOWER_PORT=65536", "must be a port, 0 to 65535, such as 5555"),
    ("GRAFANA_PORT=http", "must be a port, 0 to 65535, such as 3000"),
    ("MAX_MESSAGE_BYTES=1m", "must be a number of bytes, 1 or above, such as 1048576"),
    ("MAX_MESSAGE_BYTES=0", "must be a number of bytes, 1 or above, such as 1048576"),
    ("MAX_DOCUMENT_BYTES=0", "must be a number of bytes, 1 or above, such as 1048576"),  # demo
    ("MAX_QUEUE_DEPTH=abc", "must be a number of messages, 1 or above, such as 20000"),  # demo
    ("TRAFFIC=stedy", "no such pattern in services/celery/traffic.toml; choose from: steady, flood,"),  # demo
    ("CORPUS_DIR=docs", "must be an absolute path without a colon, such as "),  # demo
    ("CORPUS_DIR=/no/such/folder", "does not exist; set it to the folder of the documents"),  # demo
    ("CORPUS_DIR=/etc/passwd", "is not a folder; set it to the folder of the documents"),  # demo
    ("REDIS_MAXMEMORY=256", "must be a size in Redis' notation, 1mb or above, such as 256mb"),
    ("REDIS_MAXMEMORY=256MiB", "must be a size in Redis' notation, 1mb or above, such as 256mb"),
    ("REDIS_MEMORY_LIMIT=5m", "must be a size in Docker's notation, 6m or above, such as 512m"),
    ("REDIS_MEMORY_LIMIT=511m", "must be at least twice REDIS_MAXMEMORY (256mb), because rewriting the AOF forks"),
    ("REDIS_BROKER_URL=amqp://rabbit", "must be redis://host:port/database, or rediss:// for TLS, such as redis://"),
    ("REDIS_BROKER_URL=redis://redis:port/0", "must be redis://host:port/database, or rediss:// for TLS, such as"),
    ("REDIS_BROKER_URL=redis://redis/broker", "must be redis://host:port/database, or rediss:// for TLS, such as"),
    (
        "REDIS_BROKER_URL=redis+cluster://redis:6379",
        "Redis Cluster and Sentinel are not supported: kombu needs all keys",
    ),
    ("REDIS_RESULTS_URL=sentinel://redis:6379", "Redis Cluster and Sentinel are not supported: kombu needs all keys"),
    ("REDIS_IMAGE=Redis:8.6", "must be the name of an image, such as redis:8.6"),
    ("REDIS_IMAGE=redis:8.6:1", "must be the name of an image, such as redis:8.6"),
    ("FLOWR_PORT=0", "no such setting; did you mean FLOWER_PORT?"),
    ("compose_profiles=", "no such setting; did you mean COMPOSE_PROFILES?"),
    ("ZZZ=1", "no such setting; delete the line"),
    ("FLOWER_PORT = 0", "must have no spaces around the name and the value, and no export; write FLOWER_PORT=0"),
    ("FLOWER_PORT=0 ", "must have no spaces around the name and the value, and no export; write FLOWER_PORT=0"),
    ("export FLOWER_PORT=0", "must have no spaces around the name and the value, and no export; write FLOWER_PORT=0"),
    ('REDIS_IMAGE="redis:8.6"', "must have no quotes; write REDIS_IMAGE=redis:8.6"),
    ("FLOWER_PORT=0 # any", "must have no comment behind the value; write FLOWER_PORT=0"),
    ("what is this", "must be NAME=value; delete it, or begin a comment with #"),
]


@pytest.mark.parametrize(("line", "problem"), WRONG, ids=[line for line, _ in WRONG])
def test_a_wrong_line_is_named_with_its_rule(line: str, problem: str, project: Project) -> None:
    number = project.set(line)
    code, output = project.check()
    assert code == 1
    assert output.startswith(f"{HEADER}  .env line {number}: {line}: {problem}"), output
    assert output.count("\n") == 2, f"more than one is listed: {output}"


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("MAX_MESSAGE_BYTES", ("-1", "0", "1", "1.5", "x", "")),
        ("MAX_DOCUMENT_BYTES", ("-1", "0", "1", "1.5", "x", "")),  # demo
        ("MAX_QUEUE_DEPTH", ("-1", "0", "1", "1.5", "x", "")),  # demo
        ("TASK_EVENTS", ("true", "False", "x", "")),
        ("TRANSPORT", ("stock", "atomic", "x", "")),
        ("REDIS_MEMORY_LIMIT", ("512m", "1G", "6mb", "1.5g", "512MiB", "x")),
        ("REDIS_BROKER_URL", ("redis://redis:6379/0", "rediss://redis", "amqp://redis", "redis+cluster://redis", "")),
    ],
)
def test_the_services_have_the_same_rule(name: str, values: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    program = runpy.run_path(str(ROOT / "scripts/check.py"))
    for value in values:
        monkeypatch.setenv(name, value)
        try:
            load_settings()
            accepted = True
        except SystemExit:
            accepted = False
        problem = program["problem_of"](program["Setting"](name, value, ""))
        assert (problem == "") == accepted, f"{value}: {problem}"


def test_every_mistake_is_listed_at_once(project: Project) -> None:
    wrong = ("WORKER_LOW_REPLICAS=x", "FLOWER_PORT=x", "MAX_MESSAGE_BYTES=x", "REDIS_IMAGE=X", "TASK_EVENTS=x")
    for line in wrong:
        project.set(line)
    _, output = project.check()
    assert sorted(re.findall(r" line \d+: (\w+=\w+): ", output)) == sorted(wrong)


def test_a_login_is_refused_and_not_shown(project: Project) -> None:
    project.set("REDIS_BROKER_URL=redis://me:secret@redis:6379/0")
    code, output = project.check()
    assert code == 1
    assert ": REDIS_BROKER_URL=redis://…@redis:6379/0: must have no user and password: " in output
    assert "secret@" not in output


def test_a_variable_is_not_replaced(project: Project) -> None:
    project.set("COMPOSE_PROJECT_NAME=$USER")
    code, output = project.check()
    assert code == 1
    assert (
        ": COMPOSE_PROJECT_NAME=$USER: must have no $, since only compose would replace variables; write the" in output
    )


def test_windows_line_ends_are_one_line_of_the_list(project: Project) -> None:
    env = project.folder / ".env"
    env.write_bytes(env.read_bytes().replace(b"\n", b"\r\n"))
    lines = env.read_text().count("\n")
    expected = f".env: Windows line ends (CRLF) in {lines} lines, the first is 1; remove them: sed -i 's/\\r$//' .env"
    assert project.check() == (1, f"{HEADER}  {expected}\n")


def test_a_setting_that_is_set_twice(project: Project) -> None:
    first = project.set("FLOWER_PORT=0")
    env = project.folder / ".env"
    env.write_text(f"{env.read_text()}FLOWER_PORT=7777\n")
    _, output = project.check()
    assert f": FLOWER_PORT=7777: FLOWER_PORT is in line {first} too; keep one of them\n" in output


def test_the_block_of_stand_ins_may_repeat_settings(project: Project) -> None:
    (begin,) = re.findall("^BEGIN='(.*)'$", (ROOT / "scripts/images.sh").read_text(), re.MULTILINE)
    (end,) = re.findall("^END='(.*)'$", (ROOT / "scripts/images.sh").read_text(), re.MULTILINE)
    env = project.folder / ".env"
    env.write_text(f"{env.read_text()}{begin}\nREDIS_IMAGE=offline/redis:8.0\nCOMPOSE_PROFILES=events\n{end}\n")
    assert project.check() == (0, "")


def test_a_setting_that_compose_yaml_uses_is_known(project: Project) -> None:
    compose = project.folder / "compose.yaml"
    compose.write_text(compose.read_text().replace("TASK_EVENTS: ${TASK_EVENTS}", "TASK_EVENTS: ${MY_EVENTS}"))
    project.set("MY_EVENTS=1")
    assert project.check() == (0, "")


def test_a_variable_of_the_shell_is_checked_and_named_as_such(project: Project) -> None:
    rule = (
        "must be a number of bytes, 1 or above, such as 1048576. It overrides .env: unset MAX_MESSAGE_BYTES to use that"
    )
    expected = f"{HEADER}  environment: MAX_MESSAGE_BYTES=abc: {rule}\n"
    assert project.check(MAX_MESSAGE_BYTES="abc") == (1, expected)
    assert project.check(COMPOSE_PROFILES="") == (0, "")


def test_without_env(project: Project) -> None:
    (project.folder / ".env").unlink()
    code, output = project.check()
    assert code == 1
    assert output.startswith(f"{HEADER}  .env: No such file or directory, so the project's name is unknown; make env")


# --- Ports ---


def test_a_port_of_another_program(listener: socket.socket, project: Project) -> None:
    port = port_of(listener)
    number = project.set(f"FLOWER_PORT={port}")
    code, output = project.check()
    assert code == 1
    expected = (
        f"  .env line {number}: FLOWER_PORT={port}: 127.0.0.1:{port} is taken by .+; set another port, or 0 for a"
    )
    assert re.match(HEADER + expected, output), output
    if sys.platform == "linux":
        assert f"(process {os.getpid()})" in output


def test_a_port_of_a_part_that_is_left_out(listener: socket.socket, project: Project) -> None:
    project.set(f"FLOWER_PORT={port_of(listener)}")
    project.set("COMPOSE_PROFILES=grafana")
    assert project.check() == (0, "")


@pytest.mark.parametrize(
    ("container", "by"),
    [
        (f"{SETTINGS['COMPOSE_PROJECT_NAME']} flower", ""),
        (f"{SETTINGS['COMPOSE_PROJECT_NAME']} grafana", "the container its-name until make down"),
        ("other flower", "the container its-name"),
    ],
)
def test_a_port_of_a_container(container: str, by: str, listener: socket.socket, project: Project) -> None:
    project.set(f"FLOWER_PORT={port_of(listener)}")
    (project.docker / "publishing").write_text("its-name\t" + container.replace(" ", "\t") + "\n")
    code, output = project.check()
    assert code == bool(by)
    assert f"is taken by {by}; set another port, or 0 for a free one\n" in output if by else output == ""


def test_two_services_on_one_port(project: Project) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = port_of(listener)
    project.set(f"FLOWER_PORT={port}")
    project.set(f"PROMETHEUS_PORT={port}")
    _, output = project.check()
    assert f": PROMETHEUS_PORT={port}: FLOWER_PORT is the same port; set another one, or 0 for a free one\n" in output


# --- The owner of the project ---


@pytest.mark.parametrize("command", ["check", "owner"])
def test_a_project_of_another_folder(command: str, project: Project, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (project.docker / "started").write_text(f"{other}\n{project.folder}\n")
    name = f"COMPOSE_PROJECT_NAME={SETTINGS['COMPOSE_PROJECT_NAME']}"
    expected = f"{name}: the folder {other} has started this project; set another COMPOSE_PROJECT_NAME\n"
    code, output = project.check(command)
    assert code == 1
    assert re.fullmatch(rf"{HEADER}  \.env line \d+: {expected}", output), output


@pytest.mark.parametrize("command", ["check", "owner"])
def test_a_folder_that_was_moved(command: str, project: Project, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(project.folder)
    (project.docker / "started").write_text(f"{tmp_path}/moved-away\n{tmp_path}/link\n")
    assert project.check(command) == (0, "")


@pytest.mark.parametrize("target", ["down", "clean"])
def test_down_and_clean_do_nothing_without_env_or_to_the_project_of_another_folder(
    target: str, project: Project, tmp_path: Path
) -> None:
    (project.docker / "started").write_text(f"{tmp_path}\n")
    code, output = project.run("make", target, FORCE="1")
    assert code != 0
    assert f": the folder {tmp_path} has started this project; set another COMPOSE_PROJECT_NAME\n" in output
    (project.folder / ".env").unlink()
    code, output = project.run("make", target, FORCE="1")
    assert code != 0
    assert "so the project's name is unknown" in output


def test_a_project_name_that_only_compose_would_know(project: Project) -> None:
    project.set("COMPOSE_PROJECT_NAME=$USER")
    code, output = project.check("owner")
    assert code == 1
    assert ": COMPOSE_PROJECT_NAME=$USER: must be lower-case letters" in output


def test_docker_that_does_not_answer(project: Project) -> None:
    (project.docker / "docker").write_text(
        '#!/bin/sh\necho "$*" >>"$(dirname "$0")/calls"\necho "no engine" >&2\nexit 1\n'
    )
    expected = "check: docker does not answer (no engine): make engine says what to do\n"
    assert project.check() == (1, expected)


# --- Files ---


# >>> demo
def test_documents_that_the_containers_may_not_read(project: Project, tmp_path: Path) -> None:
    documents = tmp_path / "documents"
    (documents / "below").mkdir(parents=True)
    (documents / "below/secret.txt").touch(mode=0o600)
    documents.chmod(0o755)
    (documents / "below").chmod(0o755)
    project.set(f"CORPUS_DIR={documents}")
    code, output = project.check()
    assert code == 1
    expected = f"{documents}/below/secret.txt is unreadable for the containers (uid 10001): chmod -R a+rX {documents}\n"
    assert output.endswith(f": CORPUS_DIR={documents}: {expected}")
    (documents / "below/secret.txt").chmod(0o644)
    assert project.check() == (0, "")


# <<< demo
@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        # the rest of the line, the user's receiver, becomes a comment
        (
            "alertmanager.yml",
            "\n  receiver: ",
            "\n  receiver: nobody # ",
            'amtool refuses it: undefined receiver "nobody"',
        ),
        ("rules/alerts.yml", "expr: ", "expr: sum(( ", "promtool refuses it: rules/alerts.yml: "),
        ("prometheus.yml", "scrape_configs:", "scrape:", "promtool refuses it: parsing YAML file prometheus.yml: "),
    ],
)
def test_a_wrong_configuration(file: str, old: str, new: str, expected: str, project: Project) -> None:
    """With the tools of the images that run it."""
    (project.docker / "engine").write_text(shutil.which("docker") or "")
    env_file = next(path for path in (ROOT / ".env", ROOT / ".env.example") if path.exists())
    images = dict(re.findall(r"^(\w+_IMAGE)=(.*)$", env_file.read_text(), re.MULTILINE))
    for name in ("PROMETHEUS_IMAGE", "ALERTMANAGER_IMAGE"):
        project.set(f"{name}={os.environ.get(name, images[name])}")
    path = project.folder / "prometheus" / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    code, output = project.check()
    assert code == 1
    assert expected in output
    assert output.count("\n") == 2


# --- make ---


def test_up_checks_before_it_changes_anything(project: Project) -> None:
    _, output = project.run("make", "--dry-run", "-j4", "up")
    steps = [
        "scripts/engine.sh",
        "scripts/env.sh",
        "scripts/check.py",
        "scripts/images.sh",
        "compose build",
        "scripts/up.sh",
    ]
    places = [output.index(step) for step in steps]
    assert places == sorted(places), output


def test_the_engine_step_names_a_missing_python(tmp_path: Path) -> None:
    for directory in map(Path, ("/bin", "/usr/bin")):
        for program in directory.iterdir():
            if not program.name.startswith(("python", "docker")) and not (tmp_path / program.name).exists():
                (tmp_path / program.name).symlink_to(program)
    (tmp_path / "docker").write_text("#!/bin/sh\necho 2.26.1 v0.13.1\n")
    (tmp_path / "docker").chmod(0o755)
    environment = {"PATH": str(tmp_path), "SETUP": "0"}
    done = subprocess.run([ROOT / "scripts/engine.sh"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "engine: missing: Python 3.9 or newer (python3), and SETUP=0 forbids changing that.\n" in done.stderr
    assert "Install Python 3.9 or newer" in done.stderr
