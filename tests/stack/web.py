"""HTTP requests as a user's browser or script sends them: JSON APIs, and Prometheus' in particular."""

import json
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

from stack.poll import poll_until

TIMEOUT = 10

SECRETS = Path(__file__).parents[2] / "secrets"


def login(service: str) -> tuple[str, str]:
    """The login of a service's pages, as `make urls` prints it."""
    return "admin", (SECRETS / f"{service}_password").read_text().strip()


def get(url: str, login: tuple[str, str] | None = None, body: bytes | None = None) -> Any:
    """The JSON at a URL (POST if there is a body). Raises urllib's HTTPError and OSError."""
    request = _request(url, login, data=body, headers={"Content-Type": "application/json"})
    with urlopen(request, timeout=TIMEOUT) as response:  # noqa: S310
        return json.load(response)


def status(
    url: str,
    login: tuple[str, str] | None = None,
    method: str = "GET",
    body: bytes | None = None,
    headers: Mapping[str, str] = {},
) -> int:
    """The HTTP status of a URL."""
    request = _request(url, login, data=body, headers=dict(headers), method=method)
    try:
        with urlopen(request, timeout=TIMEOUT) as response:  # noqa: S310
            return int(response.status)
    except HTTPError as error:
        return error.code


def _request(url: str, login: tuple[str, str] | None, **options: Any) -> Request:
    request = Request(url, **options)  # noqa: S310 - our own loopback ports
    if login:
        request.add_header("Authorization", "Basic " + b64encode(":".join(login).encode()).decode())
    return request


class Prometheus:
    """Prometheus' HTTP API. Its address is read again each time, since a restart publishes another port."""

    def __init__(self, url: Callable[[], str]) -> None:
        self._url = url

    def api(self, path: str, **parameters: str) -> Any:
        """`data` of a response. Raises HTTPError for a query that Prometheus refuses."""
        return get(f"{self._url()}/api/v1/{path}?{urlencode(parameters)}", login("prometheus"))["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series of an instant vector."""
        result = self.api("query", query=expression)["result"]
        return [(series["metric"], float(series["value"][1])) for series in result]

    def value(self, expression: str) -> float:
        """The one value of an expression; 0 if it has none, since counters are absent until they count."""
        found = self.query(expression)
        assert len(found) <= 1, f"{expression}: {len(found)} series instead of one"
        return found[0][1] if found else 0.0

    def wait_scraped(self, jobs: str, timeout: float = 30) -> None:
        """Wait until every target of the jobs (a regular expression) has been scraped after now."""
        now = time.time()
        oldest = f'min(timestamp(up{{job=~"{jobs}"}}))'
        poll_until(lambda: self.value(oldest) > now, f"another scrape of {jobs}", timeout)

    def targets(self, job: str) -> list[dict[str, Any]]:
        """The active targets of a job."""
        return [t for t in self.api("targets", state="active")["activeTargets"] if t["labels"]["job"] == job]
