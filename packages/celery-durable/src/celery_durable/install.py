"""`install`: one call makes an app's delivery durable, before or after the app is configured."""

from contextlib import nullcontext
from threading import local
from typing import Any

from celery import Celery, canvas
from celery.utils.imports import symbol_by_name
from kombu import Connection

from celery_durable import settings, worker
from celery_durable.batch import batching_groups, open_batch
from celery_durable.composing import in_front
from celery_durable.config import Config
from celery_durable.control import Control
from celery_durable.durable import Durable
from celery_durable.errors import ConfigError
from celery_durable.events import connect_events
from celery_durable.logs import connect_logging
from celery_durable.periodic import RECONCILE, PeriodicTask
from celery_durable.publishing import AMQP
from celery_durable.task import make_durable


def install(app: Celery, config: Config) -> Durable:
    """Make the delivery of an app durable. Returns the object that tasks use.

    Opens no connection. Settings of the app take effect whether they are made before or after the call. Raises
    ConfigError if `config` asks for metrics and prometheus-client is not installed, RuntimeError at a second call.
    """
    if isinstance(app, DurableApp):
        raise RuntimeError(f"install: was already called for {app!r}; call it once per app")
    durable = Durable(app, config)
    app.durable = durable
    app.__class__ = in_front(DurableApp, type(app))
    app.own_classes = {"amqp": app.amqp_cls, "control": app.control_cls}
    app.amqp_cls = in_front(AMQP, symbol_by_name(app.amqp_cls))
    app.control_cls = in_front(Control, symbol_by_name(app.control_cls))
    for made_before in ("amqp", "control"):
        app.__dict__.pop(made_before, None)
    app._pool = app._backend_cache = None
    app._local = local()  # Celery keeps each thread's result backend in it
    app.loader.override_backends = {
        **app.loader.override_backends,
        "redis": settings.BACKEND,
        "rediss": settings.BACKEND,
    }
    app.on_after_configure.connect(_add_defaults, weak=False)
    app.on_after_finalize.connect(_make_tasks_durable, weak=False)  # tasks declared before the call
    if app.configured:
        _add_defaults(app)
    _make_tasks_durable(app)
    if not hasattr(canvas.group._apply_tasks, "__wrapped__"):
        canvas.group._apply_tasks = batching_groups(canvas.group._apply_tasks)
    app.steps["worker"].update(worker.STEPS)
    app.task(_reconcile, name=RECONCILE, base=PeriodicTask, bind=True, shared=False, ignore_result=True)
    connect_events()
    connect_logging()
    _install_metrics(app, config)
    return durable


def _reconcile(task: PeriodicTask) -> dict[str, int]:
    """See Durable.reconcile."""
    return task.app.durable.reconcile()  # type: ignore[no-any-return]


class DurableApp(Celery):
    """The first class of an app that `install` was called for."""

    durable: Durable  # what `install` returned
    own_classes: dict[str, Any]  # the app's own classes, without the library's

    def connection_for_read(self, url: str | None = None, **options: Any) -> Connection:
        """A worker's connection."""
        options["transport_options"] = self.durable.worker_options(options.get("transport_options"))
        return super().connection_for_read(url, **options)

    def connection_for_write(self, url: str | None = None, **options: Any) -> Connection:
        """A publisher's connection."""
        options["transport_options"] = self.durable.publisher_options(options.get("transport_options"))
        return super().connection_for_write(url, **options)

    def producer_or_acquire(self, producer: Any = None) -> Any:
        """Within `Durable.batch` the producer that collects."""
        batch = open_batch(self.durable) if producer is None else None
        return super().producer_or_acquire(producer) if batch is None else nullcontext(batch.producer)

    def close(self) -> None:
        super().close()
        for leases in list(self.durable.leases):  # of connections that were not closed
            leases.stop()

    def _task_from_fun(self, *args: Any, **options: Any) -> Any:
        task = super()._task_from_fun(*args, **options)
        make_durable(task, self.durable.config)
        return task

    def register_task(self, task: Any, **options: Any) -> Any:
        task = super().register_task(task, **options)
        make_durable(task, self.durable.config, **options)
        return task

    def __reduce__(self) -> tuple[Any, ...]:
        """In a pool that spawns its processes instead of forking, `install` is called again for the unpickled app."""
        base = next(each for each in type(self).__mro__ if not issubclass(each, DurableApp))
        return _unpickle, (base, self.__reduce_keys__(), self.durable.config)

    def __reduce_keys__(self) -> dict[str, Any]:
        """Without what `install` has added."""
        return {**super().__reduce_keys__(), **self.own_classes}


def _unpickle(base: Any, keys: dict[str, Any], config: Config) -> Celery:
    app: Celery = base(**keys)
    install(app, config)
    return app


def _add_defaults(sender: Any, **_: Any) -> None:
    """Called each time Celery has read the app's settings: the library's defaults override Celery's, and the app's own
    settings override both."""
    sender._conf.maps[-1].update(settings.defaults(sender.durable.config))


def _make_tasks_durable(sender: Any, **_: Any) -> None:
    for task in list(sender._tasks.values()):
        make_durable(task, sender.durable.config)


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
