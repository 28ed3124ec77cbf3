"""docs/operations.md, followed in a copy of the project, including backups and an external Redis."""

import json
import re
from itertools import product

from readme.clone import PROJECT, ROOT, Clone
from readme.page import follow
from stack.poll import poll_until

PAGE = (ROOT / "docs/operations.md").read_text()
BACKUP, RESTORE = (
    block for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE) if "/$redis.tar" in block
)


def python(clone: Clone, program: str) -> str:
    """Run a Python program in a client container; returns its last line of output."""
    code, output = clone.run(f"docker compose run --rm --no-deps -T client python -c {program!r} 2>/dev/null")
    assert code == 0, output
    return output.strip().rpartition("\n")[2]


def consumed(clone: Clone) -> dict[str, list[str]]:
    """The queues that the workers of each kind consume; none that answered within Celery's second: empty."""
    _, output = clone.run("make --silent celery ARGS='inspect active_queues --json' 2>/dev/null")
    replies = json.loads(output) if output.startswith("{") else {}
    return {worker.partition("@")[0]: sorted(queue["name"] for queue in queues) for worker, queues in replies.items()}


def test_every_step_works_as_the_page_says(clone: Clone) -> None:
    """And leaves the queues, their consumers and the containers as it must."""
    clone.output("make up")
    before = {"high": ["high"], "low": ["low"]}
    running = clone.output("docker compose ps --services --status running")

    def consumers_are(wanted: dict[str, list[str]]) -> None:
        """Soon: workers that have just lost Redis need some seconds to connect and to answer again."""

        def as_wanted() -> bool:
            found = consumed(clone)
            if found != wanted:
                raise LookupError(f"they are {found}")
            return True

        poll_until(as_wanted, f"the consumers to be {wanted}", 60)

    def paused() -> None:
        consumers_are({**before, "low": []})

    def as_before() -> None:
        consumers_are(before)
        assert clone.output("docker compose ps --services --status running") == running

    waiting = "from celery_app import durable; print(durable.broker.llen(durable.priority_list('low', 9)))"

    def started_again() -> None:
        """Then fill the queue, with a priority that nothing else uses, for the purge."""
        as_before()
        clone.output("docker compose stop worker-low")  # a paused one still has a request open, which takes a message
        python(clone, "from tasks.basic import add; [add.apply_async((1, 1), priority=9) for _ in range(50)]")
        assert python(clone, waiting) == "50"

    def purged() -> None:
        assert python(clone, waiting) == "0"
        clone.output("docker compose start worker-low")
        as_before()

    old: dict[str, str] = {}
    before_it: list[str] = []  # tasks

    def published() -> None:
        """Two tasks that do not end while a worker stops, and one that waits for them."""
        old.update({file.name: file.read_text() for file in (clone.folder / "secrets").glob("*_password")})
        publish = "from tasks.basic import add, sleep; print(sleep.delay(25), sleep.delay(25), add.delay(2, 3))"
        before_it.extend(python(clone, publish).split())

    def status(service: str, page: str, password: str) -> str:
        """The status of a page's answer to the login."""
        login = f"curl -sS -o /dev/null -w '%{{http_code}}' -u admin:{password}"
        return clone.output(f"{login} http://$(docker compose port {service} {page}")

    def rotated() -> None:
        """No old password is accepted, no task is lost, and new ones run."""
        as_before()
        for name, password in old.items():
            assert (clone.folder / "secrets" / name).read_text() != password
        for redis, user in product(("redis", "redis-results"), ("celery", "exporter")):
            login = f"redis-cli --user {user} -a {old[f'redis_{user}_password']} --no-auth-warning ping"
            assert "WRONGPASS" in clone.output(f"docker compose exec -T {redis} {login} 2>&1")
        pages = {"flower": "5555)/api/workers", "prometheus": "9090)/-/ready", "alertmanager": "9093)/-/ready"}
        for service, page in pages.items():
            name = f"{service}_password"
            assert status(service, page, old[name]) == "401"
            assert status(service, page, (clone.folder / "secrets" / name).read_text()) == "200"
        results = f"[app.AsyncResult(id).get(timeout=90) for id in {before_it}]"
        new = "add.delay(3, 4).get(timeout=30)"
        read = f"from celery_app import app; from tasks.basic import add; print({results}, {new})"
        assert python(clone, read) == "[25, 25, 5] 7"
        assert "no dead letters" in clone.output("make dlq")
        logs = clone.output("docker compose logs worker-high worker-low beat producer")
        assert "invalid username-password" not in logs, "they stopped after Redis, with the old password"

    follow(
        PAGE,
        clone,
        {
            "cancel_consumer low": paused,
            "add_consumer low": as_before,
            "start producer beat": started_again,
            "purge --force": purged,
            "make dlq": published,
            "make rotate": rotated,
            "docker compose start $redis": as_before,
            "tar -C /data -x": as_before,
        },
    )


def test_a_backup_brings_back_both_redis(clone: Clone) -> None:
    assert clone.run("make up")[0] == 0
    clients = "from celery_app import durable; b, r = durable.broker, durable.store; "
    write = "b.xadd('celery-durable:dead-letters', {'payload': '{}'}); r.set('report:kept', 'yes'); "
    contents = "print(b.xrange('celery-durable:dead-letters'), r.get('report:kept'))"
    before = python(clone, clients + write + contents)
    clone.output(BACKUP)
    python(clone, clients + "b.delete('celery-durable:dead-letters'); r.delete('report:kept')")
    clone.output(RESTORE)
    assert python(clone, clients + contents) == before


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
