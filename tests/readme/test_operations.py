"""docs/operations.md, followed in a copy of the project, including backups and an external Redis."""

import re

from readme.clone import PROJECT, ROOT, Clone
from readme.page import follow

PAGE = (ROOT / "docs/operations.md").read_text()
BACKUP, RESTORE = (
    block for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE) if "/$redis.tar" in block
)


def python(clone: Clone, program: str) -> str:
    """Run a Python program in a client container; returns its last line of output."""
    code, output = clone.run(f"docker compose run --rm --no-deps -T client python -c {program!r} 2>/dev/null")
    assert code == 0, output
    return output.strip().rpartition("\n")[2]


def test_every_step_works_as_the_page_says(clone: Clone) -> None:
    follow(PAGE, clone)


def test_a_backup_brings_back_both_redis(clone: Clone) -> None:
    assert clone.run("make up")[0] == 0
    clients = "from celery_app import durable; b, r = durable.broker, durable.store; "
    write = "b.xadd('celery-durable:dead-letters', {'payload': '{}'}); r.set('report:kept', 'yes'); "
    python(clone, clients + write)
    code, output = clone.run(f"set -e\n{BACKUP}")
    assert code == 0, output
    python(clone, clients + "b.delete('celery-durable:dead-letters'); r.delete('report:kept')")
    code, output = clone.run(f"set -e\n{RESTORE}")
    assert code == 0, output
    assert python(clone, clients + "print(b.xlen('celery-durable:dead-letters'), r.get('report:kept'))") == "1 yes"


def test_an_external_redis(clone: Clone) -> None:
    """Two Redis outside the Compose project, with the access lists of the project."""
    assert clone.run("make up")[0] == 0
    image = re.findall(r"^REDIS_IMAGE=(.*)", (clone.folder / ".env").read_text(), re.MULTILINE)[-1]
    names = {"broker": f"{PROJECT}-external-broker", "results": f"{PROJECT}-external-results"}
    try:
        for kind, name in names.items():
            code, output = clone.run(
                f"docker run --detach --name {name} --network {PROJECT}_{kind} "
                f"--volume $PWD/secrets/redis_{kind}.acl:/acl:ro {image} "
                "redis-server --appendonly yes --maxmemory 100mb --aclfile /acl"
            )
            assert code == 0, output
        urls = {f"REDIS_{kind.upper()}_URL": f"redis://{name}:6379/0" for kind, name in names.items()}
        code, output = clone.run("make up", **urls)
        assert code == 0, output
        code, output = clone.run(
            "docker compose run --rm --no-deps -T client python -c "
            '"from tasks.basic import add; print(add.delay(2, 3).get(timeout=30))" 2>/dev/null',
            **urls,
        )
        assert output.strip().endswith("5"), output
    finally:
        clone.run(f"docker rm --force --volumes {' '.join(names.values())}")
