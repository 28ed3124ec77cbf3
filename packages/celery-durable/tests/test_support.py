"""Where the atomic transport cannot be used, the stock one takes its place, with its limits and one log line."""

from socketserver import StreamRequestHandler, ThreadingTCPServer
from threading import Thread
from typing import Any

import kombu
import pytest
import redis
from celery.concurrency import get_implementation
from celery.concurrency.solo import TaskPool
from redis import Redis

from celery_durable import DelayTooLongError
from celery_durable.atomic import support
from celery_durable.atomic.transport import Transport as AtomicTransport
from celery_durable.transport import Transport

from .conftest import NewApp, NewProject
from .poll import poll_until
from .redis_server import RedisServer

LIMITED = "limited"  # a Redis user


def limit(client: Any, *denied: str) -> None:
    """Give the user all rights but these."""
    client.acl_setuser(LIMITED, enabled=True, nopass=True, keys=["*"], channels=["*"], commands=["+@all", *denied])


def limited(server: RedisServer) -> str:
    return server.url.replace("redis://", f"redis://{LIMITED}:any@")


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if "stock is used, not atomic" in each.getMessage()]


def used(app: Any) -> list[Any]:
    """The classes of a consumer's and a publisher's transport."""
    with app.connection_for_read() as reading, app.pool.acquire() as writing:
        return [type(reading.transport), type(writing.transport)]


def nothing() -> None:
    """A task."""


# --- An app ---


def test_with_everything_there_it_is_used(new_app: NewApp, caplog: pytest.LogCaptureFixture) -> None:
    app = new_app(transport="atomic")
    assert used(app) == [AtomicTransport] * 2
    assert support.missing_for_worker(TaskPool, app.durable) == []
    assert lines(caplog) == []


def test_an_app_with_the_stock_transport_is_told_nothing(
    new_app: NewApp, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis, "__version__", "99.0.0")
    assert used(new_app(transport="stock"))[0] is Transport
    assert lines(caplog) == []


@pytest.mark.parametrize(
    ("module", "version", "said"),
    [
        (kombu, "5.8.0", "kombu 5.8.0 was not tested with it; 5.7 was"),
        (redis, "9.0.0b1", "redis-py 9.0.0b1 was not tested with it; "),
        (None, "2", "broker_transport_options.protocol is 2; it needs RESP3"),
    ],
    ids=["kombu", "redis-py", "RESP2"],
)
def test_an_app_that_lacks_something_has_the_stock_transport_and_its_limits(
    new_app: NewApp,
    client: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    version: str,
    said: str,
) -> None:
    if module:
        monkeypatch.setattr(module, "__version__", version)
    options = {} if module else {"broker_transport_options": {"protocol": version}}
    app = new_app(options, transport="atomic", max_delay=3600)
    task = app.task(nothing, name="task", shared=False)
    task.apply_async(countdown=5)
    assert used(app)[0] is Transport
    assert client.llen("celery") == 1
    assert not client.exists("celery-durable:delayed:celery")
    with pytest.raises(DelayTooLongError, match="is 7 s at most"):
        task.apply_async(countdown=8)
    (line,) = lines(caplog)
    assert said in line
    assert "return after 7 s, not 6 s" in line
    assert "no delay over 7 s;" in line


@pytest.mark.parametrize(("url", "of_the_library"), [("sentinel://localhost:26379", True), ("memory://", False)])
def test_another_broker_has_the_transport_of_kombu(
    new_app: NewApp, caplog: pytest.LogCaptureFixture, url: str, of_the_library: bool
) -> None:
    app = new_app({"broker_url": url}, transport="atomic")
    assert not app.durable.atomic
    with app.connection_for_read() as connection:
        assert issubclass(connection.get_transport_cls(), kombu.Connection(url).get_transport_cls())
        assert issubclass(connection.get_transport_cls(), Transport) is of_the_library
    (line,) = lines(caplog)
    assert f"broker_url is {url.partition('//')[0]}//; it needs redis:// or rediss://" in line


# --- A worker ---


class GeventPool:
    """As Celery's for gevent, which is not installed."""


@pytest.mark.parametrize("name", ["prefork", "threads", "solo"])
def test_pools_that_were_tested(name: str) -> None:
    assert list(support._pool(get_implementation(name))) == []


def test_another_pool_lacks_something() -> None:
    (said,) = support._pool(GeventPool)
    assert said == f"the pool is {__name__}; it needs one of prefork, threads, solo"


def test_a_process_whose_threads_are_greenlets_lacks_something(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "detect_environment", lambda: "gevent")
    assert list(support._pool(TaskPool)) == ["gevent has replaced Python's sockets and threads"]


@pytest.mark.parametrize("denied", ["client|tracking", "getex", "zpopmax", "zremrangebyscore", "hmget", "evalsha"])
def test_an_access_list_without_a_command_lacks_something(
    new_app: NewApp, redis_server: RedisServer, denied: str
) -> None:
    limit(redis_server.client, f"-{denied}")
    app = new_app({"broker_url": limited(redis_server)}, transport="atomic")
    (said,) = support.missing_for_worker(TaskPool, app.durable)
    assert said.startswith("the broker refuses a command that it needs (")
    assert f"'{denied}'" in said or "on @user_script" in said  # Redis does not name a command of a script


def test_asking_leaves_nothing_that_stays(new_app: NewApp, client: Any) -> None:
    assert list(support._server(new_app(transport="atomic").durable)) == []
    poll_until(lambda: not client.keys(), "keys of one second to expire")


def test_an_old_redis_lacks_something(new_app: NewApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Redis, "info", lambda *_: {"redis_version": "6.2.14"})
    assert list(support._server(new_app(transport="atomic").durable)) == [
        "the broker is Redis 6.2.14; it needs Redis 7 or Valkey"
    ]


class WithoutHello(StreamRequestHandler):
    """A server, or a proxy, from before RESP3."""

    def handle(self) -> None:
        while line := self.rfile.readline():
            if line.startswith(b"*"):
                for _ in range(2 * int(line[1:])):
                    self.rfile.readline()
                self.wfile.write(b"-ERR unknown command\r\n")


def test_a_server_without_resp3_lacks_something(new_app: NewApp) -> None:
    with ThreadingTCPServer(("127.0.0.1", 0), WithoutHello) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        app = new_app({"broker_url": f"redis://127.0.0.1:{server.server_address[1]}/0"}, transport="atomic")
        (said,) = support._server(app.durable)
        server.shutdown()
    assert said.startswith("the broker refuses a command that it needs (unknown command)")


def test_a_redis_that_does_not_answer_may_start_later(new_app: NewApp) -> None:
    app = new_app({"broker_url": "redis://127.0.0.1:1/0"}, transport="atomic")
    assert list(support._server(app.durable)) == []


@pytest.mark.parametrize(("transport", "times"), [("stock", 1), ("atomic", 0)])
def test_a_solo_worker_says_what_the_stock_transport_cannot_do_for_it(
    new_project: NewProject, transport: str, times: int
) -> None:
    worker = new_project("", transport=transport).worker("-P", "solo")
    assert worker.log.count("a task that takes longer than Config.visibility_timeout (7 s) runs twice") == times


TASKS = """
@app.task(name="quick", shared=False)
def quick(name):
    note("ran", name)
"""


def test_a_worker_that_falls_back_runs_what_publishers_have_parked(
    new_project: NewProject, redis_server: RedisServer
) -> None:
    """Those do not ask Redis what it can do. Otherwise nobody would move the message when it is due."""
    limit(redis_server.client, "-client|tracking")
    project = new_project(TASKS, {"broker_url": limited(redis_server)}, transport="atomic")
    project.app.tasks["quick"].apply_async(("a",), countdown=8)
    assert project.client.zcard("celery-durable:delayed:celery") == 1
    worker = project.worker("-c", "1")
    assert project.wait_noted("ran") == ["a"]
    assert worker.log.count("stock is used, not atomic: the broker refuses a command") == 1
    assert not project.client.exists("celery-durable:delayed:celery")
    worker.stop()
