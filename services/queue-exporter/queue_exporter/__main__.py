"""`python -m queue_exporter`: serves until SIGTERM or SIGINT. Exit codes: 0 stopped, 2 invalid setting."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading

from prometheus_client import CollectorRegistry, ProcessCollector

from .broker import Broker
from .collector import QueueCollector
from .server import make_server
from .settings import SettingError, Settings

STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT}

log = logging.getLogger("queue_exporter")


def main() -> int:
    """Run the exporter; returns the exit code."""
    # Before any thread starts, so that all inherit the mask and only sigwait() below receives the signals.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        settings = Settings.from_environ(os.environ)
        registry = CollectorRegistry()
        registry.register(QueueCollector(Broker(settings)))
        ProcessCollector(registry=registry)
        try:
            server = make_server(settings.port, registry)
        except OSError as error:
            raise SettingError("PORT", f"cannot listen on {settings.port}: {error.strerror}") from None
    except SettingError as error:
        print(f"queue-exporter: {error}", file=sys.stderr)
        return 2
    threading.Thread(target=server.serve_forever, daemon=True).start()
    log.info("serving /metrics and /healthz on port %d; queues: %s", settings.port, ", ".join(settings.queues))
    log.info("stopping on %s", signal.Signals(signal.sigwait(STOP_SIGNALS)).name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
