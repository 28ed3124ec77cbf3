"""`install`: one call makes an app's delivery durable, before or after the app's own configuration."""

import logging
from collections.abc import Callable
from typing import Any

from celery import Celery
from celery.utils.imports import symbol_by_name
from kombu import Connection

from celery_durable import settings, worker
from celery_durable.composing import in_front
from celery_durable.config import Config
from celery_durable.control import Control
from celery_durable.durable import Durable
from celery_durable.errors import ConfigError
from celery_durable.events import connect_events
from celery_durable.periodic import RECONCILE, PeriodicTask
from celery_durable.publishing import AMQP
from celery_durable.task import patient, put_in_front

logger = logging.getLogger(__name__)


def install(app: Celery, config: Config) -> Durable:
    """Make the delivery of an app durable. Returns what tasks use of it.

    Nothing is connected. Settings of the app that are made later count as those that were made before. Raises
    ConfigError where `config` asks for metrics and prometheus-client is not installed, RuntimeError at a second call.
    """
    if isinstance(app, DurableApp):
        raise RuntimeError(f"install: was called for {app!r} before; one call for an app")
    durable = Durable(app, config)
    app.durable = durable
    app.__class__ = in_front(DurableApp, type(app))
    app.amqp_cls = in_front(AMQP, symbol_by_name(app.amqp_cls))
    app.control_cls = in_front(Control, symbol_by_name(app.control_cls))
    for made_before in ("amqp", "control", "_backend"):
        app.__dict__.pop(made_before, None)
    app._backend_cache = None
    app.loader.override_backends = {
        **app.loader.override_backends,
        "redis": settings.BACKEND,
        "rediss": settings.BACKEND,
    }
    app.on_after_configure.connect(_add_defaults, weak=False)
    if app.configured:
        _add_defaults(app)
    for task in list(app._tasks.values()):
        put_in_front(task, config)
    app.steps["worker"].update(worker.STEPS)
    app.task(_reconcile, name=RECONCILE, base=PeriodicTask, bind=True, shared=False, ignore_result=True)
    connect_events()
    _install_metrics(app, config)
    return durable


def _reconcile(task: PeriodicTask) -> dict[str, int]:
    """See Durable.reconcile."""
    return task.app.durable.reconcile()  # type: ignore[no-any-return]


class DurableApp(Celery):
    """The first class of an app that `install` was called for; `durable` is what it gave."""

    durable: Durable

    def connection_for_read(self, url: str | None = None, **options: Any) -> Connection:
        """A worker's connection."""
        options["transport_options"] = self.durable.worker_options(options.get("transport_options"))
        return super().connection_for_read(url, **options)

    def connection_for_write(self, url: str | None = None, **options: Any) -> Connection:
        """A publisher's connection."""
        options["transport_options"] = self.durable.publisher_options(options.get("transport_options"))
        return super().connection_for_write(url, **options)

    def _task_from_fun(self, fun: Callable[..., Any], *args: Any, base: Any = None, **options: Any) -> Any:
        options = patient(base or self.Task, options)
        task = super()._task_from_fun(fun, *args, base=base, **options)
        put_in_front(task, self.durable.config)
        return task

    def register_task(self, task: Any, **options: Any) -> Any:
        task = task() if isinstance(task, type) else task
        for name, value in patient(type(task), {}).items():
            setattr(task, name, value)
        put_in_front(task, self.durable.config)
        return super().register_task(task, **options)

    def __reduce__(self) -> tuple[Any, ...]:
        """A pool that spawns its processes, and does not fork them, gets an app that is installed there."""
        base = next(each for each in type(self).__mro__ if not issubclass(each, DurableApp))
        return _unpickle, (base, self.__reduce_keys__(), self.durable.config)

    def __reduce_keys__(self) -> dict[str, Any]:
        """Without what `install` puts in."""
        keys: dict[str, Any] = super().__reduce_keys__()
        return {name: value for name, value in keys.items() if name not in ("amqp", "control")}


def _unpickle(base: Any, keys: dict[str, Any], config: Config) -> Celery:
    app: Celery = base(**keys)
    install(app, config)
    return app


def _add_defaults(sender: Any, **_: Any) -> None:
    """Called each time that Celery has read the app's settings."""
    if isinstance(sender, DurableApp):
        sender._conf.add_defaults(settings.defaults(sender.durable.config))


def _install_metrics(app: Celery, config: Config) -> None:
    try:
        from celery_durable import metrics  # needs the extra
    except ModuleNotFoundError as error:
        if error.name != "prometheus_client":
            raise
        if config.metrics_port is not None:
            raise ConfigError("metrics_port: needs prometheus-client; pip install 'celery-durable[metrics]'") from error
        return
    metrics.install(app)
