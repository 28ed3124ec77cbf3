"""The promises of each service: the only place with the expectations of the stack tests.

The tests prove each line by an attempt on the running containers, never by reading compose.yaml.
"""

from dataclasses import dataclass

from queues import QUEUES

MIB = 1024 * 1024
CELERY, REDIS, NOBODY, REDIS_EXPORTER, GRAFANA = 10001, 999, 65534, 59000, 472  # users of the images, upstream's too


@dataclass(frozen=True, kw_only=True)
class Service:
    """The promises of one service."""

    name: str
    networks: set[str]
    user: int
    memory: int  # MiB
    pids: int
    port: int | None = None  # on which it listens inside the network
    published: bool = False  # that port, on 127.0.0.1 of the host
    scraped: bool = True  # Prometheus has a job with its name
    writable: tuple[str, ...] = ()  # mount points; nothing else can be written to
    healthy: bool = True  # has a health check
    stop_codes: tuple[int, ...] = (0,)
    grace: int = 10  # s, after which it is killed
    own_image: bool = False
    started: bool = True  # by `make up`


@dataclass(frozen=True, kw_only=True)
class Redis(Service):
    user: int = REDIS
    memory: int = 512
    pids: int = 64
    port: int | None = 6379
    scraped: bool = False  # scraped through redis-exporter
    writable: tuple[str, ...] = ("/data",)
    grace: int = 20


@dataclass(frozen=True, kw_only=True)
class Celery(Service):
    networks: set[str] = frozenset({"broker", "results", "metrics"})  # type: ignore[assignment]
    user: int = CELERY
    memory: int = 192
    pids: int = 32
    port: int | None = 9540
    writable: tuple[str, ...] = ("/run/celery", "/tmp")  # noqa: S108
    own_image: bool = True


@dataclass(frozen=True, kw_only=True)
class Worker(Celery):
    memory: int = 512
    pids: int = 128
    stop_codes: tuple[int, ...] = (0, 1)  # a soft shutdown that returned tasks exits with 1
    grace: int = 20


SERVICES = (
    Redis(name="redis", networks={"broker"}),
    Redis(name="redis-results", networks={"results"}),
    *(Worker(name=f"worker-{queue.name}") for queue in QUEUES),
    Celery(name="beat", writable=("/run/celery", "/tmp", "/var/lib/celery")),  # noqa: S108
    Celery(name="producer"),  # demo
    Celery(
        name="client",
        networks={"broker", "results"},
        memory=1024,
        pids=128,
        port=None,
        scraped=False,
        healthy=False,
        started=False,
    ),
    Celery(
        name="flower",
        networks={"broker", "results", "edge"},
        memory=256,
        pids=64,
        port=5555,
        published=True,
        scraped=False,
    ),
    Service(
        name="celery-exporter",
        networks={"broker", "metrics"},
        user=CELERY,
        memory=192,
        pids=32,
        port=9808,
        writable=("/tmp",),  # noqa: S108
        stop_codes=(0, 1),  # its command line library prints "Aborted!" at an interrupt, and exits with 1
    ),
    Service(
        name="queue-exporter",
        networks={"broker", "metrics"},
        user=CELERY,
        memory=128,
        pids=32,
        port=9541,
        own_image=True,
    ),
    Service(
        name="redis-exporter",
        networks={"broker", "results", "metrics"},
        user=REDIS_EXPORTER,
        memory=64,
        pids=32,
        port=9121,
        healthy=False,  # its image has no program for a check
        stop_codes=(0, 2, 143),  # by version: it catches SIGTERM, or SIGTERM kills it
    ),
    Service(
        name="prometheus",
        networks={"metrics", "edge"},
        user=NOBODY,
        memory=512,
        pids=64,
        port=9090,
        published=True,
        writable=("/prometheus",),
    ),
    Service(
        name="alertmanager",
        networks={"metrics", "edge"},
        user=NOBODY,
        memory=128,
        pids=64,
        port=9093,
        published=True,
        writable=("/alertmanager",),
    ),
    Service(
        name="grafana",
        networks={"metrics", "edge"},
        user=GRAFANA,
        memory=512,
        pids=128,
        port=3000,
        published=True,
        writable=("/var/lib/grafana", "/tmp"),  # noqa: S108
    ),
)
