"""In a container of the stack: prints as JSON what a scrape of each exporter takes, while the stack is idle."""

import json
import time
from statistics import median
from urllib.request import urlopen

from celery_app import durable

EXPORTERS = {
    "worker": "http://worker-low:9540/metrics",
    "queue-exporter": "http://queue-exporter:9541/metrics",
    "redis-exporter": "http://redis-exporter:9121/scrape?target=redis://exporter@redis:6379",
    "celery-exporter": "http://celery-exporter:9808/metrics",
}
SECONDS, MOST = 5, 100  # scrapes, for so long and so many


def redis_cpu() -> float:
    """Seconds that the broker has used."""
    info = durable.broker.info("cpu")
    return float(info["used_cpu_user"] + info["used_cpu_sys"])


def idle() -> float:
    """Seconds of CPU a second that the broker uses without these scrapes."""
    before = redis_cpu()
    time.sleep(SECONDS)
    return (redis_cpu() - before) / SECONDS


def scrape(url: str, unused: float) -> dict[str, float]:
    """Scrapes, one after the other: the median of their times, and the broker's CPU for each."""
    times: list[float] = []
    size, before, began = 0, redis_cpu(), time.monotonic()
    while len(times) < MOST and time.monotonic() < began + SECONDS:
        at = time.monotonic()
        with urlopen(url, timeout=10) as response:  # noqa: S310 - a constant, http
            size = len(response.read())
        times.append(time.monotonic() - at)
    used = redis_cpu() - before - unused * (time.monotonic() - began)
    return {"ms": median(times) * 1000, "kib": size / 1024, "redis": max(used, 0.0) / len(times) * 1e6}


if __name__ == "__main__":
    unused = idle()
    print(json.dumps({name: scrape(url, unused) for name, url in EXPORTERS.items()}))
