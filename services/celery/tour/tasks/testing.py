"""A test with a real worker, without Redis: `python -m tour.tasks.testing`. It has an app and a broker of its own."""

import time

from celery import Celery
from celery.contrib.testing.worker import start_worker

app = Celery("a-test", broker="memory://", backend="cache+memory://", set_as_current=False)
app.conf.update(broker_connection_retry_on_startup=True, worker_redirect_stdouts=False)


@app.task
def unique(words: list[str]) -> set[str]:
    """The distinct words, as a set: works as a function, but is not JSON."""
    return set(words)


@app.task
def sorted_words(words: list[str]) -> list[str]:
    """The distinct words in order, as a list."""
    return sorted(set(words))


def test_with_a_worker() -> None:
    """Starts a worker in a thread of this process; messages and results are encoded as on a real broker."""
    with start_worker(app, perform_ping_check=False, shutdown_timeout=60):
        for task in (unique, sorted_words):
            promise = task.delay(["tea", "milk", "tea"])
            while not promise.ready():  # `get` waits for a backend that sends results, which this one does not
                time.sleep(0.01)
            print(promise.state, promise.result, flush=True)


if __name__ == "__main__":
    test_with_a_worker()
