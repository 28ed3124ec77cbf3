"""The README, followed as by a new user: every command, in order, in a new clone; and every message that it quotes.

Runs before the other stack tests, so that two stacks never share the machine.
"""

import os
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import pytest

from readme.clone import ROOT, Clone
from stack.poll import poll_until

README = (ROOT / "README.md").read_text()
TROUBLE = README.partition("## When something is wrong")[2]

COMMANDS = [
    line for block in re.findall(r"^```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE) for line in block.splitlines()
]


def is_up(clone: Clone, output: str) -> None:
    assert "Up and healthy after" in output
    spaced = re.sub(" +", " ", output)
    for proof in (
        "queue high answered in",
        "queue low answered in",
        "beat its messages are sent and run",
        "Flower accepts",
    ):
        assert proof in spaced, output
    services = re.findall(r"^  (\S+) +healthy after +\d+ s$", output, re.MULTILINE)
    assert {"redis", "redis-results", "worker-high", "worker-low", "beat", "flower", "prometheus"} <= {*services}
    after = output[output.index("up: starting") :]
    assert not re.search(r"Container|Network|Volume", after), "compose's own output"
    assert all(len(line) <= 80 for line in after.splitlines()), "a line wraps"
    for name in ("Prometheus", "Alertmanager", "Flower"):
        address = re.search(rf"{name} +http://127\.0\.0\.1:(\d+)", output)
        assert address, f"no address of {name}"
        socket.create_connection(("127.0.0.1", int(address[1])), timeout=5).close()
    made = {path: path.read_bytes() for path in [clone.folder / ".env", *(clone.folder / "secrets").iterdir()]}
    code, again = clone.run("make up")
    assert code == 0, again
    assert "up: changed" not in again
    assert made == {path: path.read_bytes() for path in made}, "a second make up changed .env or a secret"


def has(*texts: str) -> Callable[[Clone, str], None]:
    def check(_: Clone, output: str) -> None:
        spaced = re.sub(" +", " ", output)
        for text in texts:
            assert text in spaced

    return check


def scaled(high: int, low: int) -> Callable[[Clone, str], None]:
    def check(clone: Clone, _: str) -> None:
        assert (clone.containers("worker-high"), clone.containers("worker-low")) == (high, low)

    return check


def scaled_for_good(clone: Clone, output: str) -> None:
    scaled(2, 1)(clone, output)
    clone.run("make up")
    scaled(2, 1)(clone, output)


def stopped(clone: Clone, _: str) -> None:
    assert not clone.left("container")
    assert not clone.left("network")
    assert clone.left("volume")


def made(clone: Clone, _: str) -> None:
    """What it makes is tested in tests/readme/test_new.py."""
    assert (clone.folder.parent / "shop/compose.yaml").exists()


def asked(clone: Clone, output: str) -> None:
    """The answer, each state in its order, and an address where Flower shows this task."""
    assert re.search(r"^import: [1-9]\d* times in [1-9]\d* documents", output, re.MULTILINE), output
    times = [float(seconds) for seconds in re.findall(r"^ +(\d+\.\d{3}) s  ", output, re.MULTILINE)]
    assert len(times) >= 2
    assert times == sorted(times)
    (identifier,) = re.findall(r"published to the queue high, id (\S+)", output)
    (address,) = re.findall(rf"http://\S+/task/{identifier}", output)
    password = (clone.folder / "secrets/flower_password").read_text()
    page = clone.output(f"curl -sS --fail -u admin:{password} {address}")
    assert "tasks.search.search" in page


def removed(clone: Clone, _: str) -> None:
    assert not any(clone.left(kind) for kind in ("container", "volume", "network"))


#: The state that must hold after each command of the README.
CHECKS: dict[str, Callable[[Clone, str], None]] = {
    "make up": is_up,
    "make urls": has("http://127.0.0.1:", "admin / "),
    "make ask WORD=import": asked,
    "make ps": has("worker-high", "healthy"),
    "make help": has("make up", "make test"),
    "make client": has("add.delay(2, 3) 5"),
    "make new DIR=../shop": made,
    "make inspect": has("high@", "low@"),
    "make tour LESSON=chords": has("result: 30", "A member fails", "chords Canvas 2 ok"),
    "make chaos FAULT=worker-kill": has("now: A worker container is killed", " 0 lost, 0 applied twice,"),
    "make dlq": has("no dead letters"),
    "make load TRAFFIC=flood FOR=30s": has("published"),
    "make scale LOW=4": scaled(1, 4),
    "make scale HIGH=2 LOW=1": scaled_for_good,
    "docker compose up -d --scale worker-low=4 --no-recreate": scaled(2, 4),
    "docker compose ps": has("worker-low"),
    "make down": stopped,
    "FORCE=1 make clean": removed,
}


def test_every_target_named_exists(clone: Clone) -> None:
    targets = set(re.findall(r"`make ([a-z][a-z-]+)", README))
    listed = set(re.findall(r"^  make ([a-z-]+) ", clone.run("make help")[1], re.MULTILINE))
    assert targets <= listed


def test_make_test_is_what_ci_runs() -> None:
    """The only command that is not run here: this test is part of it, or of `make test-all`."""
    assert "make test" in COMMANDS
    assert (ROOT / ".ci/run").read_text().rstrip().endswith("make test-all")


@contextmanager
def loading(clone: Clone) -> Iterator[None]:
    """`make load` in another shell, which the command within the block ends."""
    command = ["make", "load", "TRAFFIC=steady", "FOR=600s"]
    log = clone.folder.parent / "load.log"
    with log.open("w") as file:
        load = subprocess.Popen(command, cwd=clone.folder, env=clone.environment, stdout=file, stderr=file)
    try:
        poll_until(lambda: "pattern steady" in log.read_text(), "make load to send", 60)
        yield
        assert load.wait(60) == 0
    finally:
        load.terminate()
    assert re.search(r"stopped by SIGTERM$", log.read_text(), re.MULTILINE)
    assert re.search(r"^published \d+, unpublished 0 in ", log.read_text(), re.MULTILINE), log.read_text()


#: What runs in another shell meanwhile.
BESIDE: dict[str, Callable[[Clone], AbstractContextManager[None]]] = {"make down": loading}


@pytest.mark.parametrize("command", [command for command in COMMANDS if command != "make test"])
def test_command(clone: Clone, command: str) -> None:
    with BESIDE.get(command, nullcontext)(clone):
        code, output = clone.run(command)
    assert code == 0, output
    CHECKS[command](clone, output)


def test_new_rights_reach_a_redis_that_runs(clone: Clone) -> None:
    """After an update of the access lists."""
    assert clone.run("make up")[0] == 0
    template = clone.folder / "services/redis/broker.acl.template"
    template.write_text(template.read_text().replace("    +ping", "    +zcard +ping", 1))
    code, output = clone.run("make up")
    assert code == 0, output
    assert "up: changed: secrets/redis_broker.acl; restarting redis\n" in output
    count = "from celery_app import durable; print(durable.broker.zcard('unacked_index'))"
    assert clone.run(f'docker compose run --rm --no-deps client python -c "{count}"')[0] == 0


def test_a_queue_whose_workers_are_healthy_but_do_not_answer_is_not_up(clone: Clone) -> None:
    clone.output("make up; make celery ARGS='control cancel_consumer high'")
    code, output = clone.run("make up")
    assert code != 0, output
    assert "queue high: no worker answered within" in output
    assert "Up and healthy" not in output
    assert "Up and healthy" in clone.output("docker compose restart worker-high; make up")


def test_a_login_that_is_not_accepted_is_not_up(clone: Clone) -> None:
    clone.output("make up")
    secret = clone.folder / "secrets/flower_password"
    password = secret.read_text()
    secret.chmod(0o644)
    # With the old time, so that `make up` does not see the change; a file of the same inode, which Flower has mounted.
    file = "secrets/flower_password"
    clone.output(f"touch -r {file} old; echo another >{file}; touch -r old {file}")
    code, output = clone.run("make up")
    assert code != 0, output
    assert "Flower does not accept the login admin with the password in secrets/flower_password" in re.sub(
        " +", " ", output
    )
    secret.write_text(password)
    assert "Up and healthy" in clone.output("make up")


def containers_of_celery(clone: Clone) -> set[str]:
    """Ids of the containers that run the app."""
    return set(clone.output("docker compose ps --quiet worker-high worker-low beat producer").split())


def test_switching_a_profile_recreates_no_container_of_celery(clone: Clone) -> None:
    clone.output("make up")
    before = containers_of_celery(clone)
    assert len(before) >= 4
    clone.output("COMPOSE_PROFILES= make up")
    assert containers_of_celery(clone) == before
    clone.output("make up")
    assert containers_of_celery(clone) == before


def without_docker(clone: Clone) -> str:
    """A PATH with all programs of the current one except docker."""
    folder = clone.folder / "bin"
    folder.mkdir()
    for directory in os.environ["PATH"].split(":"):
        if not Path(directory).is_dir():
            continue
        for program in Path(directory).iterdir():
            if not program.name.startswith("docker") and not (folder / program.name).exists():
                (folder / program.name).symlink_to(program)
    return str(folder)


def port_taken(clone: Clone) -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        env = clone.folder / ".env"
        env.write_text(re.sub(r"^FLOWER_PORT=.*", f"FLOWER_PORT={port}", env.read_text(), flags=re.MULTILINE))
        return clone.run("make up", FLOWER_PORT=port)[1]


def started_by_another(clone: Clone) -> str:
    labels = {"project": clone.project, "project.working_dir": clone.folder.parent}
    options = " ".join(f"--label com.docker.compose.{name}={value}" for name, value in labels.items())
    create = f"docker create --name {clone.project}-other {options} $(sed -n 's/^REDIS_IMAGE=//p' .env | tail -n 1)"
    return clone.run(f"make images; {create}; make down; docker rm {clone.project}-other")[1]


def redis_stopped(clone: Clone) -> str:
    run = "docker compose run --rm --no-deps -e TRAFFIC=steady -e FOR=5s producer"
    return clone.run(f"docker compose stop redis; {run}")[1]


#: The command that causes each message that the README quotes. `…` in a quote matches anything.
MESSAGES: dict[str, Callable[[Clone], str]] = {
    "engine: missing: …": lambda clone: clone.run("make engine", SETUP="0", PATH=without_docker(clone))[1],
    "check: these are wrong; nothing was changed:": lambda clone: clone.run("make up", MAX_MESSAGE_BYTES="many")[1],
    "127.0.0.1:… is taken by …": port_taken,
    "the folder … has started this project": started_by_another,
    "Grafana is left out: …": lambda clone: clone.run("sed -i '$aCOMPOSE_PROFILES=events' .env; make urls")[1],
    "Wrong settings (.env.example describes them):": lambda clone: clone.run(
        "docker compose run --rm --no-deps -e MAX_QUEUE_DEPTH=many producer"
    )[1],
    "Dangerous settings, refused:": lambda clone: clone.run(
        "docker compose up -d --wait redis redis-results; "
        "docker compose run --rm --no-deps -e REDIS_MEMORY_LIMIT=300m producer"
    )[1],
    "TRAFFIC: no '…' in traffic.toml; choose one of …": lambda clone: clone.run("make load TRAFFIC=stedy")[1],
    "scale: LOW=… is not a number of containers (0 to 999).": lambda clone: clone.run("make scale LOW=four")[1],
    "new: DIR=…: it exists and is not empty; choose another folder": lambda clone: clone.run(
        "mkdir -p ../taken && touch ../taken/file && make new DIR=../taken"
    )[1],
    "Queue '…' missing from task_queues": lambda clone: clone.run(
        "make celery ARGS=\"call tasks.basic.add --args='[1, 2]' --queue=hihg\""
    )[1],
    "invalid username-password pair or user is disabled": lambda clone: clone.run(
        "docker compose run --rm -e REDIS_USERNAME=nobody client celery -A celery_app call tasks.search.stats"
    )[1],
    "Redis accepts no messages (…); trying again every 1 s": redis_stopped,
    "tour: no worker consumes the queue …": lambda clone: clone.run(
        "docker compose up -d --wait redis redis-results; docker compose stop worker-high; make tour LESSON=chords"
    )[1],
    "LESSON: no lesson '…'; make tour LESSON=list shows all lessons": lambda clone: clone.run("make tour LESSON=cords")[
        1
    ],
}


@pytest.mark.parametrize("message", re.findall(r"^\| `([^`]+)` \|", TROUBLE, re.MULTILINE))
def test_message(clone: Clone, message: str) -> None:
    """Every message under "When something is wrong" is printed as quoted."""
    output = MESSAGES[message](clone)
    assert re.search(".*".join(map(re.escape, message.split("…"))), output), output
