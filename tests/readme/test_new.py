"""`make new`: the new stack survives a killed worker, passes its own tests, and can be extended."""

import re
from collections.abc import Iterator
from shlex import quote

import pytest

from readme.clone import Clone, Shell
from readme.receiver import RECEIVES
from stack.poll import poll_until

NAME = "celery-stack-new"
ORDERS, CENTS = 5000, 7
DEMO = ("search", "tour", "chaos", "producer.py", "client.py", "traffic.toml", "basic.py", "faults", "readme")
RECEIVER = f"{NAME}-receiver"


@pytest.fixture(scope="module")
def shop(clone: Clone) -> Iterator[Shell]:
    """The new project."""
    clone.output(f"make new DIR=../{NAME}")
    shop = Shell(clone.folder.parent / NAME, NAME)
    yield shop
    images = f"{NAME}/celery:local {NAME}/queue-exporter:local"
    shop.run(f"docker rm --force {RECEIVER}; FORCE=1 make clean; docker image rm {images}")


def edit(shop: Shell, name: str, old: str, new: str) -> None:
    """Change one place of a file."""
    text = (shop.folder / name).read_text()
    assert text.count(old) == 1, f"{name} does not have once: {old}"
    (shop.folder / name).write_text(text.replace(old, new))


def python(shop: Shell, program: str) -> str:
    """Run a Python program in a client container; returns its last line of output."""
    output = shop.output(f"docker compose run --rm --no-deps -T client python -c {quote(program)} 2>/dev/null")
    return output.strip().rpartition("\n")[2]


def takings(shop: Shell) -> int:
    return int(python(shop, "from celery_app import durable; print(durable.store.get('orders:takings') or 0)"))


def test_it_has_its_own_name_and_nothing_of_the_demo(shop: Shell) -> None:
    names = {path.name for path in shop.folder.rglob("*") if "offline" not in path.parts}
    assert names.isdisjoint(DEMO)
    text = "".join(
        file.read_text() for file in shop.folder.rglob("*") if file.is_file() and "packages" not in file.parts
    )
    assert not re.search(r"celery-stack(?!-new)|tasks\.(basic|search|workflows|advanced)\b|make tour|CORPUS_DIR", text)
    assert f"COMPOSE_PROJECT_NAME={NAME}\n" in (shop.folder / ".env.example").read_text()


def test_it_starts_with_secrets_of_its_own(shop: Shell, clone: Clone) -> None:
    clone.output("make env")
    assert "Up and healthy" in shop.output("make up")
    for file in (shop.folder / "secrets").glob("*_password"):
        assert file.read_text() != (clone.folder / "secrets" / file.name).read_text()


def test_its_task_runs(shop: Shell) -> None:
    arguments = """--args='["A-17", 500]'"""
    task = shop.output(f"make --silent celery ARGS={quote(f'call tasks.orders.charge {arguments}')}").split()[-1]
    result = f"from celery_app import app; print(app.AsyncResult('{task}').get(timeout=30))"
    assert python(shop, result) == "500"


def test_a_killed_worker_loses_nothing_and_applies_nothing_twice(shop: Shell) -> None:
    before, wanted = takings(shop), takings(shop) + ORDERS * CENTS
    shop.output("docker compose stop worker-low")
    python(
        shop, f"from tasks.orders import charge\nfor n in range({ORDERS}): charge.delay(f'B-{{n}}', {CENTS})\nprint()"
    )
    shop.output("docker compose start worker-low")
    poll_until(lambda: takings(shop) > before, "a first order charged", 60)
    shop.output("docker compose kill worker-low")
    assert takings(shop) < wanted, "all were charged before the kill: nothing was tested"
    shop.output("docker compose start worker-low")
    poll_until(lambda: takings(shop) >= wanted, "every order charged", 240, interval=3)
    assert takings(shop) == wanted


def test_it_passes_its_own_tests(shop: Shell) -> None:
    assert "All 3 parts passed" in shop.output("make test")


def test_a_queue_a_periodic_task_and_a_receiver_are_added(shop: Shell) -> None:
    edit(
        shop,
        "services/celery/queues.py",
        "QUEUES = (HIGH, LOW)\n",
        'ORDERS = TaskQueue("orders", tasks=("tasks.orders.*",), max_wait=60)\n\nQUEUES = (HIGH, LOW, ORDERS)\n',
    )
    edit(
        shop,
        "services/celery/beat_schedule.py",
        "ENTRIES = {\n",
        'ENTRIES = {\n    "charge": {**entry("tasks.orders.charge", 5, "orders", 5), "args": ["by-beat", 1]},\n',
    )
    edit(shop, "prometheus/alertmanager.yml", "  receiver: none\n", "  receiver: on-call\n")
    edit(
        shop,
        "prometheus/alertmanager.yml",
        "receivers:\n",
        f"receivers:\n  - name: on-call\n    webhook_configs: [{{ url: 'http://{RECEIVER}:8080/' }}]\n",
    )
    before = takings(shop)
    assert "Up and healthy" in shop.output("make up")
    assert shop.containers("worker-orders") == 1
    poll_until(lambda: takings(shop) == before + 1, "what beat sends every 5 s, applied once", 60, interval=2)
    logs = shop.output("docker compose logs worker-orders")
    assert "tasks.orders.charge" in logs, "another worker ran it"
    run = f"docker run --detach --name {RECEIVER} --network {NAME}_metrics"
    shop.output(f"{run} {NAME}/celery:local python -u -c {quote(RECEIVES)}")
    amtool = "docker compose exec -T alertmanager amtool --http.config.file=/etc/alertmanager/amtool_login.yml"
    amtool += " --alertmanager.url=http://localhost:9093"
    shop.output(f"{amtool} alert add Test job=test")

    def received() -> bool:
        return "received Test" in shop.output(f"docker logs {RECEIVER}")

    poll_until(received, "the receiver to get the alert", 60, interval=1)
    shop.output("make test-unit")
