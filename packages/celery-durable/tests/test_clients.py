"""Clients of Redis: one per process, and a password that may be replaced while they are used."""

import multiprocessing
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from kombu.exceptions import OperationalError
from redis import AuthenticationError, Redis
from redis import ConnectionError as RedisConnectionError

from celery_durable import Config
from celery_durable.clients import Clients, PasswordFile, connect, credentials

from .conftest import NewApp, NewProject
from .poll import poll_until
from .redis_server import RedisServer

NOWHERE = "redis://127.0.0.1:1/0"


# --- Which password ---


@pytest.mark.parametrize("url", [NOWHERE, "redis://me@127.0.0.1:1/0", "rediss://me@127.0.0.1:1/0"])
def test_an_address_without_a_password_has_that_of_the_file(tmp_path: Path, url: str) -> None:
    (tmp_path / "password").write_text("secret\n")
    client = connect(url, Config(store=NOWHERE, password_file=tmp_path / "password"))
    options = client.connection_pool.connection_kwargs
    login = ("me", "secret") if "me@" in url else ("secret",)
    assert options["credential_provider"].get_credentials() == login
    assert not options.get("username")
    assert options["host"] == "127.0.0.1"


def test_an_address_with_a_password_keeps_it(tmp_path: Path) -> None:
    config = Config(store=NOWHERE, password_file=tmp_path / "gone")
    options = connect("redis://us%40er:pass%2Fword@127.0.0.1:1/3", config).connection_pool.connection_kwargs
    assert (options["username"], options["password"], options["db"]) == ("us@er", "pass/word", 3)
    assert options.get("credential_provider") is None
    assert credentials(config, None, "word") is None


def test_without_a_file_there_is_no_password() -> None:
    assert connect(NOWHERE, Config(store=NOWHERE)).connection_pool.connection_kwargs.get("credential_provider") is None


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(AuthenticationError, match=rf"password_file: cannot read {tmp_path}/gone: No such file"):
        PasswordFile(tmp_path / "gone", None).get_credentials()


def test_a_publisher_whose_file_cannot_be_read_gets_a_readable_error(new_app: NewApp, tmp_path: Path) -> None:
    app = new_app({"task_publish_retry": False}, password_file=tmp_path / "gone")
    with pytest.raises(OperationalError, match="password_file: cannot read"):
        app.send_task("a")


def test_its_options_are_those_of_config() -> None:
    config = Config(store=NOWHERE, publish_connect_timeout=0.7, publish_socket_timeout=0.8, health_check_interval=9)
    options = connect(NOWHERE, config).connection_pool.connection_kwargs
    assert {name: options[name] for name in ("socket_connect_timeout", "socket_timeout", "health_check_interval")} == {
        "socket_connect_timeout": 0.7,
        "socket_timeout": 0.8,
        "health_check_interval": 9,
    }


# --- A password that is replaced ---

USER = "worker"


class Login:
    """A user of Redis whose password is in a file."""

    def __init__(self, server: RedisServer, file: Path) -> None:
        self.server, self.file = server, file
        self.url = server.url.replace("redis://", f"redis://{USER}@")
        self.set("first")

    def set(self, password: str) -> None:
        self.server.client.acl_setuser(
            USER, enabled=True, reset_passwords=True, passwords=[f"+{password}"], keys=["*"], channels=["*"],
            categories=["+@all"],
        )  # fmt: skip
        self.file.write_text(f"{password}\n")

    def replace(self) -> None:
        """Replace the password and close all connections of the user."""
        self.set("second")
        self.server.client.client_kill_filter(user=USER)


@pytest.fixture
def login(redis_server: RedisServer, tmp_path: Path) -> Login:
    return Login(redis_server, tmp_path / "password")


def uses(app: Any) -> dict[str, Callable[[], Any]]:
    """All uses of Redis by an app outside a worker."""
    return {
        "store": lambda: app.durable.store.set("a", "b"),
        "broker": lambda: app.durable.broker.llen("celery"),
        "raw broker": lambda: app.durable.reconcile(),
        "publisher": lambda: app.send_task("a"),
        "outbox": lambda: app.send_task("in outbox"),
        "results": lambda: app.backend.store_result("a", 1, "SUCCESS") and app.AsyncResult("a").get(timeout=10),
        "control": lambda: app.control.revoke("a"),
        "once": lambda: app.durable.once("once:a", lambda pipe: "done"),
    }


@pytest.mark.parametrize("name", uses(None))
def test_the_app_continues_with_a_replaced_password(new_app: NewApp, login: Login, name: str) -> None:
    app = new_app({"broker_url": login.url, "result_backend": login.url}, store=login.url, password_file=login.file)

    def in_outbox() -> None: ...

    app.task(in_outbox, name="in outbox", outbox=True, shared=False)
    use = uses(app)[name]
    use()
    login.replace()

    def continues() -> bool:
        with suppress(RedisConnectionError):  # that the server closes its connection may be noticed only now
            use()
            return True
        return False

    poll_until(continues, "it to be used again", timeout=30)


@pytest.mark.parametrize("password", ["first", "p@ss:w/rd%41?#"])
def test_its_address_with_the_password_is_one_to_connect_to(password: str, new_app: NewApp, login: Login) -> None:
    """Flower reads the lengths of queues by it; without being asked for, the password is in no address."""
    login.set(password)
    app = new_app({"broker_url": login.url}, password_file=login.file)
    app.send_task("a")
    with app.connection() as connection:
        address = urlsplit(connection.as_uri(include_password=True))
        assert connection.as_uri().startswith(f"redis://{USER}:**@127.0.0.1")
    client = Redis(port=address.port, username=address.username, password=unquote(address.password))
    assert client.llen("celery") == 1


TASKS = """
@app.task(name="add", shared=False)
def add(a, b):
    note("added")
    return a + b
"""


def test_a_worker_continues_with_a_replaced_password(login: Login, new_project: NewProject) -> None:
    project = new_project(
        TASKS,
        {"broker_url": login.url, "result_backend": login.url},
        store=login.url,
        password_file=login.file,
    )
    worker = project.worker("-c", "2")
    assert project.app.send_task("add", (1, 2)).get(timeout=30) == 3
    connected = {each["user"] for each in login.server.client.client_list()}
    assert USER in connected
    login.replace()
    assert project.app.send_task("add", (3, 4)).get(timeout=60) == 7
    assert worker.alive
    poll_until(lambda: login.server.client.hgetall("celery-durable:workers"), "the worker to be registered")


# --- Processes and threads ---


def test_a_client_is_made_once_for_each_address() -> None:
    clients = Clients()
    assert clients.get(NOWHERE, object) is clients.get(NOWHERE, object)
    assert clients.get(NOWHERE, object) is not clients.get("redis://127.0.0.1:1/1", object)


def ask(durable: Any, name: str, failed: Any) -> None:
    for number in range(300):
        key = f"{name}:{number}"
        durable.store.set(key, key)
        if durable.store.get(key) != key:
            failed.set()


def test_processes_after_a_fork_do_not_mix_up_their_replies(app: Any) -> None:
    fork = multiprocessing.get_context("fork")
    failed = fork.Event()
    app.durable.store.ping()
    processes = [fork.Process(target=ask, args=(app.durable, f"{number}", failed)) for number in range(3)]
    for process in processes:
        process.start()
    ask(app.durable, "parent", failed)
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert not failed.is_set()


def test_a_process_after_a_fork_has_a_client_of_its_own() -> None:
    clients = Clients()
    before = clients.get(NOWHERE, object)
    read, write = os.pipe()
    if not (child := os.fork()):
        os.write(write, b"other" if clients.get(NOWHERE, object) is not before else b"same")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 10) == b"other"
    assert clients.get(NOWHERE, object) is before


def test_threads_share_a_client(app: Any) -> None:
    failed = threading.Event()
    threads = [threading.Thread(target=ask, args=(app.durable, f"{number}", failed)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed.is_set()
    assert isinstance(app.durable.store, Redis)
