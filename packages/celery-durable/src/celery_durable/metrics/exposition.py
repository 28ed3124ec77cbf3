"""Serves this process's metrics over HTTP, including those of its pool children."""

import os
from collections.abc import Iterator
from pathlib import Path
from threading import Lock

from prometheus_client import REGISTRY, CollectorRegistry, start_http_server
from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from celery_durable.logs import get_logger

logger = get_logger(__name__)


class ChildrenCollector(Collector):
    """prometheus-client's multiprocess mode, for a pool whose children are replaced.

    Each child writes files named after its PID. If they were deleted its counts would be lost; if they were kept they
    would accumulate. So before each scrape the files of dead processes are merged into one archive.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._merged = MultiProcessCollector(None, str(folder))
        self._lock = Lock()

    def collect(self) -> Iterator[Metric]:
        with self._lock:  # a scrape in the middle of the move would count a child twice
            for file in self._folder.glob("*.db"):
                kind, _, pid = file.stem.rpartition("_")
                if int(pid) and not Path("/proc", pid).exists():
                    self._absorb(file, self._folder / f"{kind}_0.db")
            yield from self._merged.collect()

    @staticmethod
    def _absorb(dead: Path, archive: Path) -> None:
        if not dead.name.startswith("gauge"):  # a dead process has no current value
            total = MmapedDict(str(archive))
            for key, value, _timestamp, _position in MmapedDict.read_all_values_from_file(str(dead)):
                total.write_value(key, total.read_value(key)[0] + value, 0.0)
            total.close()
        dead.unlink()


def registry() -> CollectorRegistry:
    """The registry to serve: of this process, or of it and its children if multiprocess mode is on."""
    if folder := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        result = CollectorRegistry()
        result.register(ChildrenCollector(Path(folder)))
        return result
    return REGISTRY


def serve(port: int, served: CollectorRegistry) -> None:
    """Serve /metrics on `port` from a thread. If the port is in use the process runs on without metrics."""
    try:
        start_http_server(port, registry=served)
    except OSError as error:
        logger.warning("metrics_port: no metrics of this process, port %s cannot be opened: %s", port, error.strerror)
