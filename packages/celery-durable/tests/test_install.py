"""`install`: for every kind of app, and whenever it is configured, the app's own settings are kept."""

import logging
import pickle
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import celery
import pytest
from celery import Celery, shared_task
from celery.app import amqp, control
from celery.app.defaults import NAMESPACES, SETTING_KEYS, flatten
from celery.backends.redis import RedisBackend as CelerysBackend
from kombu import Exchange, Queue
from redis import RedisError

from celery_durable import Config, Durable, install
from celery_durable.backend import RedisBackend
from celery_durable.settings import defaults
from celery_durable.task import DurableTask
from celery_durable.transport import Transport

from .project import close, run_python

NOWHERE = "redis://127.0.0.1:1/0"
CONFIG = Config(store=NOWHERE)


@pytest.fixture
def bare() -> Iterator[Callable[..., Any]]:
    """Makes apps that `install` was not called for."""
    made: list[Any] = []

    def make(**options: Any) -> Any:
        made.append(Celery("bare", set_as_current=False, **{"broker": NOWHERE, "backend": NOWHERE, **options}))
        return made[-1]

    yield make
    for app in made:
        close(app)


# --- Before and after the app's own configuration ---

OWN = {"task_time_limit": 33, "worker_prefetch_multiplier": 8}


class Settings:
    """For config_from_object."""

    task_time_limit = 33
    worker_prefetch_multiplier = 8


class Namespaced:
    """For config_from_object with a namespace."""

    CELERY_TASK_TIME_LIMIT = 33
    CELERY_WORKER_PREFETCH_MULTIPLIER = 8


def assign(app: Any) -> None:
    app.conf.task_time_limit = 33
    app.conf["worker_prefetch_multiplier"] = 8


CONFIGURED: dict[str, Callable[[Any], Any]] = {
    "update": lambda app: app.conf.update(OWN),
    "assignment": assign,
    "object": lambda app: app.config_from_object(Settings),
    "object at once": lambda app: app.config_from_object(Settings, force=True),
    "namespace": lambda app: app.config_from_object(Namespaced, namespace="CELERY"),
}


@pytest.mark.parametrize("when", ["before", "after", "before, read", "after, read"])
@pytest.mark.parametrize("how", CONFIGURED)
def test_the_apps_settings_override_those_of_the_library(bare: Callable[..., Any], how: str, when: str) -> None:
    app = bare()
    if when.startswith("after"):
        install(app, CONFIG)
    if when.endswith("read"):
        assert app.conf.task_acks_late is when.startswith("after")
    CONFIGURED[how](app)
    if when.startswith("before"):
        install(app, CONFIG)
    assert (app.conf.task_time_limit, app.conf.worker_prefetch_multiplier) == (33, 8)
    assert app.conf.task_acks_late is True, "the library's default"
    assert app.conf.broker_url == NOWHERE


def test_settings_that_are_read_again_have_the_librarys_defaults_again(bare: Callable[..., Any]) -> None:
    app = bare()
    install(app, CONFIG)
    assert app.conf.task_acks_late
    app.config_from_object({"task_time_limit": 33}, force=True)
    assert (app.conf.task_acks_late, app.conf.task_time_limit) == (True, 33)
    app.config_from_object({"task_acks_late": False}, force=True)
    assert app.conf.task_acks_late is False


def test_no_setting_of_the_app_is_replaced(bare: Callable[..., Any]) -> None:
    """Each of Celery's settings, set to a value that is no default of Celery or the library."""
    mine: dict[str, Any] = {"broker_transport_options": {"of my own": 1}}
    for name, option in flatten(NAMESPACES):
        if option.type in (None, "string") and name not in ("broker_url", "result_backend"):
            mine[name] = f"my {name}"
    app = bare()
    app.conf.update(mine)
    install(app, CONFIG)
    assert {name: app.conf[name] for name in mine} == mine


def test_a_second_call_is_refused(bare: Callable[..., Any]) -> None:
    app = bare()
    install(app, CONFIG)
    with pytest.raises(RuntimeError, match=r"install: was already called for <Celery bare.*>; call it once per app"):
        install(app, CONFIG)


def test_two_apps_do_not_share_what_is_theirs(bare: Callable[..., Any]) -> None:
    one, two = bare(), bare()
    first, second = install(one, CONFIG), install(two, Config(store=NOWHERE, key_prefix="two:", max_delay=10))
    assert isinstance(first, Durable)
    assert one.durable is first
    assert two.durable is second
    assert one.amqp.Connection.durable is first
    assert two.amqp.Connection.durable is second
    assert (one.conf.beat_scheduler, two.durable.config.max_delay) == (two.conf.beat_scheduler, 10)


def test_two_apps_on_one_broker_share_no_connection(bare: Callable[..., Any]) -> None:
    one, two, stock = bare(), bare(), bare()
    install(one, CONFIG)
    install(two, CONFIG)
    stock.conf.broker_transport_options = one.connection_for_write().transport_options
    assert len({id(app.pool) for app in (one, two, stock)}) == 3
    assert len({id(app.producer_pool) for app in (one, two, stock)}) == 3


def test_an_app_without_it_stays_as_it_was(bare: Callable[..., Any]) -> None:
    install(bare(), CONFIG)
    app = bare()
    assert app.conf.task_acks_late is False
    assert type(app.backend) is CelerysBackend
    assert not isinstance(app.connection_for_write().transport, Transport)

    @app.task(shared=False)
    def plain() -> None: ...

    assert not isinstance(app.tasks[plain.name], DurableTask)


def test_objects_created_before_install_are_created_again(bare: Callable[..., Any]) -> None:
    """The app's connections, backend and remote control."""
    app = bare()
    app.pool, app.producer_pool, app.backend, app.control, app.amqp  # noqa: B018 - makes them
    install(app, CONFIG)
    assert isinstance(app.backend, RedisBackend)
    with app.connection_for_read() as connection:
        assert isinstance(connection.transport, Transport)
    for pool in (app.pool, app.producer_pool.connections):
        with pool.acquire() as connection:
            assert connection.transport_options["socket_timeout"] == CONFIG.publish_socket_timeout
    assert app.control.mailbox.type == "fanout"


def test_defaults_that_the_app_adds_override_those_of_the_library(bare: Callable[..., Any]) -> None:
    for read in (False, True):
        app = bare()
        install(app, CONFIG)
        assert not read or app.conf.task_time_limit == 3600
        app.add_defaults(OWN)
        assert (app.conf.task_time_limit, app.conf.task_acks_late) == (33, True)


# --- Task classes ---


class Base(celery.Task):
    """A user's own base class."""

    abstract = True
    max_retries = 7
    of_my_own = "kept"

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        self.started = [*getattr(self, "started", []), task_id]
        super().before_start(task_id, args, kwargs)


class Mine(Base):
    """A class-based task."""

    name = "mine"

    def run(self, number: int) -> int:
        return number + 1


def successor(number: int) -> int:
    return number + 1


def nothing() -> None: ...


def check_task(app: Any, task: Any) -> None:
    """Check that it has the user's behaviour and the library's."""
    assert isinstance(task, DurableTask)
    assert isinstance(task, Base)
    assert (task.max_retries, task.of_my_own, task.outbox) == (7, "kept", False)
    assert task.default_retry_delay == app.durable.config.default_retry_delay
    assert task.apply((1,), task_id="a").get() == 2
    assert task.started == ["a"], "its own before_start is called"
    assert isinstance(pickle.loads(pickle.dumps(task)), DurableTask), "by its name"  # noqa: S301


@pytest.mark.parametrize("when", ["before install", "after install"])
@pytest.mark.parametrize("read", [False, True], ids=["", "finalized"])
def test_task_classes_of_the_user(bare: Callable[..., Any], when: str, read: bool) -> None:
    app = bare(task_cls=Base)

    def declare() -> list[Any]:
        made = [
            app.task(successor, name="of app.Task", shared=False),
            app.task(successor, name="shared, of app.Task"),
            app.task(successor, name="lazy", base=Base, shared=False),
            app.task(successor, name="not lazy", base=Base, shared=False, lazy=False),
        ]
        if read:
            app.finalize()
        return [*made, app.register_task(Mine())]

    if when == "before install":
        tasks = declare()
        install(app, CONFIG)
    else:
        install(app, CONFIG)
        tasks = declare()
    app.set_current()
    for task in tasks:
        check_task(app, app.tasks[task.name])


def test_a_task_that_is_used_before_the_app_is_finalized(bare: Callable[..., Any]) -> None:
    app = bare()

    @app.task(shared=False, outbox=True)
    def task() -> None: ...

    install(app, CONFIG)
    assert task.name
    assert isinstance(app.tasks[task.name], DurableTask)
    assert (task.outbox, task.max_retries) == (True, 20)


def test_a_class_is_registered_as_well_as_an_instance(bare: Callable[..., Any]) -> None:
    app = bare()
    install(app, CONFIG)
    assert app.register_task(Mine) is app.tasks["mine"]
    check_task(app, app.tasks["mine"])


def test_a_shared_task_is_durable_in_the_app_alone_that_has_the_library(bare: Callable[..., Any]) -> None:
    @shared_task(name="shared by all", outbox=True, base=Base)
    def shared(number: int) -> int:
        return number + 1

    app, stock = bare(), bare()
    install(app, CONFIG)
    assert isinstance(app.tasks["shared by all"], DurableTask)
    assert (app.tasks["shared by all"].outbox, app.tasks["shared by all"].max_retries) == (True, 7)
    assert not isinstance(stock.tasks["shared by all"], DurableTask)


def test_autodiscovered_tasks(bare: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "found_by_name"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "tasks.py").write_text(
        textwrap.dedent("""
            from celery import shared_task

            @shared_task(outbox=True)
            def discovered(): ...
        """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    app = bare()
    install(app, CONFIG)
    app.autodiscover_tasks(["found_by_name"])
    app.loader.import_default_modules()
    assert isinstance(app.tasks["found_by_name.tasks.discovered"], DurableTask)
    assert app.tasks["found_by_name.tasks.discovered"].outbox is True
    del sys.modules["found_by_name.tasks"], sys.modules["found_by_name"]


def test_annotations_apply_to_its_tasks(bare: Callable[..., Any]) -> None:
    app = bare()
    app.conf.task_annotations = {"annotated": {"rate_limit": "3/m", "max_retries": 1}}
    install(app, CONFIG)
    task = app.task(nothing, name="annotated", outbox=True, shared=False)
    assert (app.tasks[task.name].rate_limit, task.max_retries) == ("3/m", 1)


# --- Other classes of the user ---


class MyAMQP(amqp.AMQP):
    """Counts the messages that it publishes."""

    argsrepr_maxsize = 7


class MyControl(control.Control):
    """With an additional method."""

    def hello(self) -> str:
        return "hello"


class MyCelery(Celery):
    """An app class of the user's own."""

    def on_init(self) -> None:
        self.initialized = True


def test_the_users_amqp_control_and_app_classes_are_used(bare: Callable[..., Any]) -> None:
    app = MyCelery("mine", set_as_current=False, broker=NOWHERE, amqp=MyAMQP, control=f"{__name__}:MyControl")
    install(app, CONFIG)
    assert isinstance(app, MyCelery)
    assert app.initialized
    assert isinstance(app.amqp, MyAMQP)
    assert app.amqp.argsrepr_maxsize == 7
    assert app.control.hello() == "hello"
    with pytest.raises(RedisError):
        app.control.revoke("a")
    close(app)


def test_another_result_backend_is_not_replaced(bare: Callable[..., Any]) -> None:
    for backend, kind in (("cache+memory://", "CacheBackend"), (None, "DisabledBackend"), ("rpc://", "RPCBackend")):
        app = Celery("other", set_as_current=False, broker=NOWHERE, backend=backend)
        install(app, CONFIG)
        assert type(app.backend).__name__ == kind
        close(app)


def test_the_librarys_result_backend_is_celerys_for_redis(bare: Callable[..., Any]) -> None:
    for scheme in ("redis", "rediss"):
        app = bare(backend=f"{scheme}://127.0.0.1:1/3?ssl_cert_reqs=none" if scheme == "rediss" else NOWHERE)
        install(app, CONFIG)
        assert isinstance(app.backend, RedisBackend)
        assert app.backend.as_uri().startswith(f"{scheme}://127.0.0.1:1/")


# --- The pickled app ---


def test_a_pickled_app_is_installed_where_it_is_read(bare: Callable[..., Any]) -> None:
    app = MyCelery("pickled", set_as_current=False, broker=NOWHERE, amqp=MyAMQP, control=MyControl)
    app.conf.task_time_limit = 44
    install(app, Config(store=NOWHERE, max_delay=11))
    for _ in range(2):
        read = pickle.loads(pickle.dumps(app))  # noqa: S301
        assert read is not app
        assert isinstance(read, MyCelery)
        assert isinstance(read.amqp, MyAMQP)
        assert isinstance(read.control, MyControl)
        assert read.durable.config == app.durable.config
        assert (read.conf.task_time_limit, read.conf.task_acks_late) == (44, True)
        read.task(nothing, name="in the other process", shared=False)
        assert isinstance(read.tasks["in the other process"], DurableTask)
        close(app)
        app = read
    close(app)


SPAWNED = """
import multiprocessing
from celery import Celery
from celery_durable import Config, install

def look(app):
    print(type(app).__mro__[1].__name__, app.durable.config.max_delay, app.conf.task_acks_late, app.main)

if __name__ == "__main__":
    app = Celery("spawned", broker="redis://127.0.0.1:1/0")
    install(app, Config(store="redis://127.0.0.1:1/0", max_delay=11))
    process = multiprocessing.get_context("spawn").Process(target=look, args=(app,))
    process.start()
    process.join()
"""


def test_a_process_that_is_spawned_gets_the_app(tmp_path: Path) -> None:
    (tmp_path / "spawned.py").write_text(SPAWNED)
    done = run_python(
        f"import runpy, sys; sys.argv = ['']; sys.path.insert(0, {str(tmp_path)!r})\n"
        f"runpy.run_path({str(tmp_path / 'spawned.py')!r}, run_name='__main__')"
    )
    assert done.stdout == "DurableApp 11 True spawned\n", done.stderr


# --- Transport options ---

ENFORCED = {
    "visibility_timeout": 90,
    "unacked_restore_interval": 1,
    "unacked_restore_throttle": 1,
    "unacked_mutex_expire": 3,
    "ack_emulation": True,
}


def options_of(app: Any) -> list[dict[str, Any]]:
    """The transport options of a worker's connection and of a publisher's."""
    return [app.connection_for_read().transport_options, app.connection_for_write().transport_options]


def test_the_transport_options_of_the_app_are_kept(bare: Callable[..., Any]) -> None:
    mine = {"priority_steps": [0, 5], "sep": ":", "global_keyprefix": "my:", "client_name": "me", "of my own": 1,
            "socket_keepalive": False, "health_check_interval": 7, "queue_order_strategy": "sorted"}  # fmt: skip
    app = bare()
    app.conf.broker_transport_options = mine
    install(app, CONFIG)
    for options in options_of(app):
        assert {**mine, "health_check_interval": options["health_check_interval"]}.items() <= options.items()
        assert ENFORCED.items() <= options.items()
    assert options_of(app)[0]["health_check_interval"] == 7


def test_the_options_of_a_call_override_all_others(bare: Callable[..., Any]) -> None:
    app = bare()
    install(app, CONFIG)
    options = {"transport_options": {"socket_timeout": 7, "visibility_timeout": 8}}
    for connection in (
        app.connection_for_read(**options),
        app.connection_for_write(**options),
        app.connection(**options),
    ):
        assert options["transport_options"].items() <= connection.transport_options.items()


def test_overridden_options_are_logged_once_in_one_line(
    bare: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    app = bare()
    own = {name: value + 1 for name, value in ENFORCED.items()} | {"ack_emulation": False}
    app.conf.broker_transport_options = {**own, "socket_keepalive": False}
    install(app, CONFIG)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            options_of(app)
    assert sorted(record.getMessage() for record in caplog.records) == sorted(
        f"broker_transport_options.{name}: {own[name]} is replaced by {value}; see celery_durable.Config"
        for name, value in ENFORCED.items()
    )


def test_an_option_with_the_same_value_is_not_logged(
    bare: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    app = bare()
    app.conf.broker_transport_options = ENFORCED
    install(app, CONFIG)
    options_of(app)
    assert caplog.records == []


def test_a_publishers_connection_has_time_outs_unless_they_are_switched_off(bare: Callable[..., Any]) -> None:
    app, without = bare(), bare()
    install(app, CONFIG)
    install(without, Config(store=NOWHERE, publish_timeout=False))
    timeouts = {
        "socket_connect_timeout": CONFIG.publish_connect_timeout,
        "socket_timeout": CONFIG.publish_socket_timeout,
    }
    read, write = options_of(app)
    assert timeouts.items() <= write.items()
    assert not timeouts.keys() & read.keys(), "a worker's blocking read has no time-out"
    assert not timeouts.keys() & options_of(without)[1].keys()


# --- Settings ---


@pytest.mark.parametrize(
    ("off", "settings"),
    [
        ("acks_late", {"task_acks_late": False, "worker_disable_prefetch": True}),
        ("worker_lost", {"task_reject_on_worker_lost": False, "task_retry_on_worker_lost": False}),
        ("consumer", {"worker_consumer": "celery.worker.consumer:Consumer"}),
    ],
)
def test_a_protection_that_is_switched_off_is_so_in_the_settings(
    bare: Callable[..., Any], off: str, settings: dict[str, Any]
) -> None:
    app, without = bare(), bare()
    install(app, CONFIG)
    switches: dict[str, Any] = {off: False}
    install(without, Config(store=NOWHERE, **switches))
    for name, value in settings.items():
        assert without.conf[name] == value
        assert app.conf[name] != value


def test_each_default_is_a_setting_of_celery() -> None:
    assert defaults(CONFIG).keys() <= SETTING_KEYS


# --- Names ---


def queues_of(app: Any, *queues: Queue, **options: Any) -> Durable:
    app.conf.update(task_queues=queues, broker_transport_options=options)
    return install(app, CONFIG)


def test_the_lists_of_a_queue_are_those_of_the_transport(bare: Callable[..., Any]) -> None:
    durable = queues_of(bare())
    assert durable.priority_lists("any name") == ["any name", *(f"any name\x06\x16{step}" for step in (3, 6, 9))]
    assert durable.priority_list("q", 5) == "q\x06\x163"
    durable = queues_of(bare(), priority_steps=range(1, 3), sep="|", global_keyprefix="p:")
    assert durable.priority_lists("q") == ["p:q|1", "p:q|2"]
    assert [durable.priority_list("q", priority) for priority in (1, 2, 9)] == ["p:q|1", "p:q|2", "p:q|2"]
    assert (durable.unacked_key, durable.broker_key("x")) == ("p:unacked", "p:celery-durable:x")


def test_a_queue_is_found_by_its_binding(bare: Callable[..., Any]) -> None:
    durable = queues_of(
        bare(),
        Queue("plain"),
        Queue("bound", Exchange("direct"), routing_key="by another name"),
        Queue("topic", Exchange("events", "topic"), routing_key="order.#"),
    )

    def queue_of(exchange: str, key: str, **info: str) -> str:
        return durable.queue_of({"exchange": exchange, "routing_key": key, **info})

    assert queue_of("", "plain") == "plain"
    assert queue_of("direct", "by another name") == "bound"
    assert queue_of("", "bound") == "bound"
    assert queue_of("events", "order.#") == "topic"
    assert queue_of("events", "order.new", queue="topic") == "topic", "the transport has noted it"
    assert queue_of("", "what a stranger wrote") == "other"
    assert durable.queue_of(None) == durable.queue_of({}) == "other"


def test_the_address_of_the_connection_stays_as_it_is(bare: Callable[..., Any]) -> None:
    """Flower and `celery report` read it."""
    app = bare(broker="redis://user:word@127.0.0.1:1/2")
    install(app, CONFIG)
    for connection in (app.connection_for_read(), app.connection_for_write()):
        assert connection.as_uri() == "redis://user:**@127.0.0.1:1/2"
        assert connection.as_uri(include_password=True) == "redis://user:word@127.0.0.1:1/2"
        assert (connection.transport_cls, connection.transport.driver_type) == ("redis", "redis")
        assert connection.clone().as_uri() == connection.as_uri()
        assert connection.clone().durable is app.durable
    assert "'redis': transport" not in app.bugreport()
    assert "transport:redis" in app.bugreport()


# --- Without prometheus-client ---

WITHOUT = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "prometheus_client":
            raise ModuleNotFoundError(f"No module named {name!r}", name="prometheus_client")
sys.meta_path.insert(0, Blocked())
from celery import Celery
from celery_durable import Config, install
app = Celery("without", broker="redis://127.0.0.1:1/0")
try:
    install(app, Config(store="redis://127.0.0.1:1/0", metrics_port=PORT))
except Exception as error:
    print(type(error).__name__, error)
else:
    def ran(): return "ran"
    print("installed", app.task(ran, name="a", shared=False).apply().get())
"""


def test_without_prometheus_client_it_works() -> None:
    done = run_python(WITHOUT.replace("PORT", "None"))
    assert (done.stdout, done.stderr) == ("installed ran\n", "")


def test_a_metrics_port_without_prometheus_client_is_refused() -> None:
    done = run_python(WITHOUT.replace("PORT", "9540"))
    assert done.stdout == ("ConfigError metrics_port: needs prometheus-client; pip install 'celery-durable[metrics]'\n")
