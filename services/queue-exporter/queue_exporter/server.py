"""Answers /metrics and /healthz over HTTP, each request in its own thread."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment


class Server(ThreadingMixIn, WSGIServer):
    """One thread per request, so that a scrape that waits for Redis does not delay /healthz."""

    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Log errors of the exporter, but not of a client that disconnected or sent nothing."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class QuietHandler(WSGIRequestHandler):
    """Logs no requests, and disconnects a client that sends nothing."""

    timeout = 5  # seconds

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it
        """No line per scrape."""


def make_server(port: int, registry: CollectorRegistry) -> Server:
    """A server that listens on `port` of every interface; raises OSError if it cannot."""
    server = Server(("0.0.0.0", port), QuietHandler)  # noqa: S104 - access is limited by the container's networks
    server.set_app(_app(registry))
    return server


def _app(registry: CollectorRegistry) -> WSGIApplication:
    metrics: WSGIApplication = make_wsgi_app(registry)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        match environ["PATH_INFO"]:
            case "/metrics":
                return metrics(environ, start_response)
            case "/healthz":  # independent of Redis, whose state is celery_broker_up
                status, body = "200 OK", b"ok\n"
            case _:
                status, body = "404 Not Found", b"see /metrics and /healthz\n"
        start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
        return [body]

    return app
