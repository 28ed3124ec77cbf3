#!/usr/bin/env python3
"""`make check`: lists all that is wrong with settings, ports and files, before `make up` changes anything.

`check.py owner`, for `make down` and `make clean`, only checks that this folder started the project's containers.
It changes nothing. Needs only Python 3.9.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from glob import iglob
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
COMPOSE = (ROOT / "compose.yaml").read_text(encoding="utf-8")
DEFAULTS = dict(re.findall(r"^(\w+)=(.*)$", (ROOT / ".env.example").read_text(encoding="utf-8"), re.MULTILINE))
PROJECT = "COMPOSE_PROJECT_NAME"
NOT_STARTED = "tools"  # the profile of `make shell` and similar commands
NOT_RUN = 125  # exit codes of `docker run` from here on: there is no such image, or no such program in it
COMPOSES_OWN = ("COMPOSE_FILE", "COMPOSE_PARALLEL_LIMIT", "DOCKER_CONTEXT", "DOCKER_HOST")  # may be in .env too

UID = 10001  # of the containers that read the documents; demo

UNITS = {"": 1, "b": 1, "k": 10**3, "kb": 1 << 10, "m": 10**6, "mb": 1 << 20, "g": 10**9, "gb": 1 << 30}  # Redis'


@dataclass(frozen=True)
class Setting:
    """A value, and where it is set."""

    name: str
    value: str
    where: str

    def wrong(self, problem: str) -> str:
        """The line of the list: where, what, the rule, what to do."""
        override = "" if self.where.startswith(".env") else f". It overrides .env: unset {self.name} to use that"
        return f"{self.where}: {without_login(f'{self.name}={self.value}')}: {problem}{override}"


def without_login(text: str) -> str:
    """A setting without the login in its URL, to be shown."""
    return re.sub("//.*@", "//…@", text)


# --- The rules: each returns what a value must be, or nothing if the value is right ---


def whole(what: str, least: int, most: int | None = None) -> Callable[[str], str]:
    """The rule of a whole number."""
    limits = f"{least} to {most}" if most else f"{least} or above"

    def rule(value: str) -> str:
        right = re.fullmatch("[0-9]+", value) and least <= int(value) and (most is None or int(value) <= most)
        return "" if right else f"must be {what}, {limits}"

    return rule


def redis_bytes(value: str) -> int:
    """Bytes in Redis' `256mb`; 0 if it is not a size."""
    match = re.fullmatch("([0-9]+)(b|[kmg]b?|)", value.lower())
    return int(match[1]) * UNITS[match[2]] if match else 0


def docker_bytes(value: str) -> int:
    """Bytes in Docker's `512m`, where m and mb are the same; 0 if it is not a size."""
    match = re.fullmatch("([0-9]+)([kmg]?)b?", value.lower())
    return int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[match[2]] if match else 0


def maxmemory(value: str) -> str:
    return "" if redis_bytes(value) >= 1 << 20 else "must be a size in Redis' notation, 1mb or above"


def memory_limit(value: str) -> str:
    return "" if docker_bytes(value) >= 6 << 20 else "must be a size in Docker's notation, 6m or above"


def transport(value: str) -> str:
    return "" if value in ("stock", "atomic") else "must be stock or atomic"


def boolean(value: str) -> str:
    return "" if value.lower() in ("true", "false") else "must be true or false"


def redis_url(value: str) -> str:
    """The rule of a Redis' address; queue-exporter and celery-exporter accept no login in it."""
    scheme = value.partition(":")[0]
    if "cluster" in scheme or "sentinel" in scheme:
        return "Redis Cluster and Sentinel are not supported: kombu needs all keys on one node; use a single Redis"
    try:
        parts = urlsplit(value)
        right = (
            scheme in ("redis", "rediss")
            and bool(parts.hostname)
            and parts.port != 0
            and re.fullmatch("(/[0-9]*)?", parts.path) is not None
        )
    except ValueError:  # of a port
        right = False
    if not right:
        return "must be redis://host:port/database, or rediss:// for TLS"
    return "must have no user and password: the passwords are in secrets/" if "@" in parts.netloc else ""


def image(value: str) -> str:
    part = "[a-z0-9]+(?:(?:[.]|_{1,2}|-+)[a-z0-9]+)*"
    registry = "(?:(?=localhost/|[^/]*[.:])[A-Za-z0-9.-]+(?::[0-9]+)?/)?"
    reference = rf"{registry}{part}(?:/{part})*(?::[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?(?:@sha256:[0-9a-f]{{64}})?"
    return "" if re.fullmatch(reference, value) else "must be the name of an image"


def project_name(value: str) -> str:
    right = re.fullmatch("[a-z0-9][a-z0-9_-]*", value)
    return "" if right else "must be lower-case letters, digits, - and _, the first a letter or a digit"


def known_profiles(value: str) -> str:
    choices = sorted(set(profiles().values()) - {NOT_STARTED})
    for name in filter(None, value.split(",")):
        if name not in choices:
            return f"no profile {name!r}; choose from: {', '.join(choices)}, separated by commas without spaces"
    return ""


# >>> demo
def traffic(value: str) -> str:
    patterns = re.findall(r"^\[([\w-]+)", (ROOT / "services/celery/traffic.toml").read_text("utf-8"), re.MULTILINE)
    if not value or value in patterns:
        return ""
    return f"no such pattern in services/celery/traffic.toml; choose from: {', '.join(dict.fromkeys(patterns))}"


def corpus_dir(value: str) -> str:
    if not value:
        return ""
    if not value.startswith("/") or ":" in value:
        return f"must be an absolute path without a colon, such as {ROOT / 'documents'}"
    if not os.path.isdir(value):
        what = "is not a folder" if os.path.exists(value) else "does not exist"
        return f"{what}; set it to the folder of the documents"
    # Elsewhere containers run in a virtual machine, which maps owners.
    if sys.platform == "linux" and (unreadable := next(_unreadable(value), None)):
        return f"{unreadable} is unreadable for the containers (uid {UID}): chmod -R a+rX {value}"
    return ""


def _unreadable(path: str) -> Iterator[str]:
    """The folders and files below that the containers' user may not read; symbolic links are not followed there."""
    status = os.stat(path)
    shift = 6 if status.st_uid == UID else 3 if status.st_gid == UID else 0
    folder = os.path.isdir(path)
    needed = 5 if folder else 4
    if status.st_mode >> shift & needed != needed:
        yield path
    elif folder:
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False):
                        yield from _unreadable(entry.path)
        except OSError:  # removed meanwhile, or readable for them but not for us
            return


# <<< demo
RULES: dict[str, Callable[[str], str]] = {
    "COMPOSE_PROJECT_NAME": project_name,
    "COMPOSE_PROFILES": known_profiles,
    "WORKER_[A-Z0-9_]+_REPLICAS": whole("a number of containers", 0, 999),
    "WORKER_[A-Z0-9_]+_CONCURRENCY": whole("a number of processes", 1),
    "[A-Z]+_PORT": whole("a port", 0, 65535),
    "MAX_[A-Z]+_BYTES": whole("a number of bytes", 1),
    # >>> demo
    "CORPUS_DIR": corpus_dir,
    "TRAFFIC": traffic,
    "MAX_QUEUE_DEPTH": whole("a number of messages", 1),
    # <<< demo
    "REDIS_MAXMEMORY": maxmemory,
    "REDIS_MEMORY_LIMIT": memory_limit,
    "REDIS_[A-Z]+_URL": redis_url,
    "TASK_EVENTS|INTERNAL_NETWORKS": boolean,
    "TRANSPORT": transport,
    "[A-Z_]+_IMAGE": image,
}


@cache  # a walk of many documents takes a second
def problem_of(setting: Setting) -> str:
    """What is wrong with a setting's value, or nothing."""
    for names, rule in RULES.items():
        if re.fullmatch(names, setting.name):
            problem, default = rule(setting.value), DEFAULTS.get(setting.name)
            return f"{problem}, such as {default}" if default and re.match("must be (?!an abs)", problem) else problem
    return ""


# --- .env and the environment ---


def read(text: str, wrong: list[str]) -> Iterator[Setting]:
    """The settings in .env; appends lines that are not written as NAME=value, which compose and the scripts would read
    differently."""
    lines: dict[str, int] = {}
    with_cr: list[int] = []
    by_user = True
    for number, line in enumerate(text.split("\n"), 1):
        if line.endswith("\r"):
            with_cr.append(number)
            line = line[:-1]
        if line.startswith(("# >>> stand-ins", "# <<< stand-ins")):  # scripts/images.sh repeats settings there
            by_user = line.startswith("# <<<")
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        where = f".env line {number}"
        match = re.fullmatch(r"\s*(?:export\s+)?(\w+)\s*=\s*(.*?)\s*", line)
        if not match:
            wrong.append(f"{where}: {line}: must be NAME=value; delete it, or begin a comment with #")
            continue
        name, value = match[1], match[2]
        problem = "must have no spaces around the name and the value, and no export"
        if line == f"{name}={value}":
            problem = ""
        if value[:1] in ("'", '"'):
            problem, value = "must have no quotes", value.strip("'\"")
        elif " #" in value:
            problem, value = "must have no comment behind the value", value.partition(" #")[0].rstrip()
        if "$" in value:
            problem = "must have no $, since only compose would replace variables; write the value"
        elif problem:
            problem += f"; write {without_login(f'{name}={value}')}"
        if problem:
            wrong.append(f"{where}: {without_login(line)}: {problem}")
        if by_user and name in lines:
            wrong.append(f"{where}: {without_login(line)}: {name} is in line {lines[name]} too; keep one of them")
        if by_user:
            lines[name] = number
        yield Setting(name, value, where)
    if with_cr:
        wrong.append(
            f".env: Windows line ends (CRLF) in {len(with_cr)} lines, the first is {with_cr[0]}; "
            "remove them: sed -i 's/\\r$//' .env"
        )


def settings(wrong: list[str]) -> list[Setting]:
    """The settings in .env, then those of the environment that override them: the last of a name is used."""
    try:
        text = (ROOT / ".env").read_bytes().decode("utf-8-sig", errors="replace")  # keeps CRs
    except OSError as error:
        wrong.append(
            f".env: {error.strerror}, so the project's name is unknown; make env creates it with "
            f"{PROJECT}={DEFAULTS[PROJECT]}: change that if yours was another"
        )
        return []
    found = [*read(text, wrong)]
    in_file = {setting.name: setting.value for setting in found}
    over = {name: os.environ[name] for name in DEFAULTS if os.environ.get(name, in_file.get(name)) != in_file.get(name)}
    return [*found, *(Setting(name, value, "environment") for name, value in over.items())]


def values(found: list[Setting]) -> Iterator[str]:
    """Unknown names, and values against the rules."""
    known = {*DEFAULTS, *COMPOSES_OWN}
    for file in (*ROOT.glob("compose*.y*ml"), *ROOT.glob("docker-compose*.y*ml")):
        known.update(re.findall(r"\$\{?(\w+)", file.read_text(encoding="utf-8")))
    for setting in found:
        if setting.name not in known:
            near = get_close_matches(setting.name.upper(), sorted(known), 1)
            yield setting.wrong(f"no such setting; {f'did you mean {near[0]}?' if near else 'delete the line'}")
        elif problem := problem_of(setting):
            yield setting.wrong(problem)
    used = {setting.name: setting for setting in found}
    yield from (f".env: {name} is missing; take its line from .env.example" for name in DEFAULTS if name not in used)
    limit, memory = used.get("REDIS_MEMORY_LIMIT"), used.get("REDIS_MAXMEMORY")
    if limit and memory and not problem_of(limit) and docker_bytes(limit.value) < 2 * redis_bytes(memory.value):
        yield limit.wrong(f"must be at least twice REDIS_MAXMEMORY ({memory.value}), because rewriting the AOF forks")


# --- The machine: containers, ports, configuration ---


def docker(*arguments: str) -> str:
    """What a docker command prints. Raises SystemExit if docker does not answer."""
    try:
        done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        raise SystemExit(f"check: docker cannot be run ({error.strerror}): make engine says what to do") from None
    if done.returncode:
        last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise SystemExit(f"check: docker does not answer ({last}): make engine says what to do")
    return done.stdout


def services(text: str) -> dict[str, str]:
    """What `text`, a regular expression, captures in each service in compose.yaml that has it."""
    blocks = re.split(r"^(?=  [\w-]+:\n)", COMPOSE.partition("\nservices:\n")[2], flags=re.MULTILINE)
    found = {block.partition(":")[0].strip(): re.search(text, block) for block in blocks}
    return {service: match[1] for service, match in found.items() if match}


def profiles() -> dict[str, str]:
    """The profile of each service that has one."""
    return services(r"\n    profiles: \[(\w+)\]")


def owner(project: Setting) -> Iterator[str]:
    """With the same project name, another folder's containers would be replaced or removed."""
    label = '{{.Label "com.docker.compose.project.working_dir"}}'
    started = docker("ps", "--all", "--filter", f"label=com.docker.compose.project={project.value}", "--format", label)
    for folder in sorted(set(filter(None, started.splitlines()))):
        # If it no longer exists, this folder was moved.
        if os.path.isdir(folder) and not os.path.samefile(folder, ROOT):
            yield project.wrong(f"the folder {folder} has started this project; set another COMPOSE_PROJECT_NAME")


def ports(right: dict[str, Setting]) -> Iterator[str]:
    """Ports that two services or another program use; those of this project's own containers stay in use."""
    profile, enabled = profiles(), right["COMPOSE_PROFILES"].value.split(",")
    project = right[PROJECT].value
    used: dict[int, str] = {}
    for service, name in services(r'"127\.0\.0\.1:\$\{(\w+)\}').items():
        port = int(right[name].value) if name in right else 0
        if port == 0 or (service in profile and profile[service] not in enabled):
            continue
        if port in used:
            yield right[name].wrong(f"{used[port]} is the same port; set another one, or 0 for a free one")
        elif by := _user(port, service, project):
            yield right[name].wrong(f"127.0.0.1:{port} is taken by {by}; set another port, or 0 for a free one")
        used[port] = name


def _user(port: int, service: str, project: str) -> str:
    """The user of a port, other than the service itself; nothing if the port is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # or connections that just ended would count
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                return ""  # such as EACCES: only the engine needs the right
        else:
            return ""
    labels = '{{.Label "com.docker.compose.project"}}\t{{.Label "com.docker.compose.service"}}'
    lines = docker("ps", "--filter", f"publish={port}", "--format", f"{{{{.Names}}}}\t{labels}").splitlines()
    for line in lines:
        name, *by = line.split("\t")
        if by == [project, service]:
            return ""
        return f"the container {name}" + (" until make down" if by[0] == project else "")
    return _program(port) or "another program"


def _program(port: int) -> str:
    """The program that listens on a port, if Linux' /proc shows it to us."""
    sockets = set()
    for table in filter(os.path.exists, ("/proc/net/tcp", "/proc/net/tcp6")):
        for line in Path(table).read_text().splitlines()[1:]:
            _, address, _, state, *rest = line.split()
            if state == "0A" and address.endswith(f":{port:04X}"):  # 0A: LISTEN
                sockets.add(f"socket:[{rest[5]}]")
    for descriptor in iglob("/proc/[0-9]*/fd/*"):
        try:
            if os.readlink(descriptor) in sockets:
                process = Path(descriptor).parts[2]
                return f"{Path('/proc', process, 'comm').read_text().strip()} (process {process})"
        except OSError:
            continue
    return ""


def configurations(right: dict[str, Setting]) -> Iterator[str]:
    """Prometheus' and Alertmanager's own checks of their files; skipped if there is no such image yet."""
    for name, tool, arguments in (
        ("PROMETHEUS_IMAGE", "promtool", ("check", "config", "prometheus.yml")),
        ("ALERTMANAGER_IMAGE", "amtool", ("check-config", "alertmanager.yml")),
    ):
        if name in right:
            run = ["docker", "run", "--rm", "--pull=never", "--network=none", f"--entrypoint={tool}"]
            run += [f"--volume={ROOT}/prometheus:/etc/prometheus:ro", "--workdir=/etc/prometheus"]
            done = subprocess.run(
                [*run, right[name].value, *arguments], capture_output=True, text=True, errors="replace", check=False
            )
            if 0 < done.returncode < NOT_RUN:
                yield f"prometheus/{arguments[-1]}: {tool} refuses it: {_reason(done.stdout + done.stderr)}"


def _reason(output: str) -> str:
    """What follows FAILED in a tool's output, in one line."""
    reason = (output.partition("FAILED:")[2] or output).strip().partition("\n\n")[0]
    return " ".join(line.strip() for line in reason.splitlines())


def check() -> Iterator[str]:
    """All that is wrong."""
    wrong: list[str] = []
    found = settings(wrong)
    yield from wrong
    if not found:
        return
    yield from values(found)
    right = {name: setting for name, setting in {each.name: each for each in found}.items() if not problem_of(setting)}
    if PROJECT in right:
        yield from owner(right[PROJECT])
    if {PROJECT, "COMPOSE_PROFILES"} <= set(right):
        yield from ports(right)
    yield from configurations(right)


def check_owner() -> Iterator[str]:
    """Whether the project's name is known, and no other folder has started it."""
    wrong: list[str] = []
    projects = [setting for setting in settings(wrong) if setting.name == PROJECT]
    if not projects:
        yield from wrong or [f".env: {PROJECT} is missing; take its line from .env.example"]
    elif problem := problem_of(projects[-1]):
        yield projects[-1].wrong(problem)
    else:
        yield from owner(projects[-1])


def main(arguments: list[str]) -> int:
    wrong = [*(check_owner() if arguments == ["owner"] else check())]
    if wrong:
        print("check: these are wrong; nothing was changed:", *wrong, sep="\n  ", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
