"""Celery's pools: what they have begun, and errors that they do not report."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from billiard.einfo import ExceptionInfo
from billiard.exceptions import WorkerLostError
from celery.concurrency import prefork, solo, thread
from celery.exceptions import WorkerShutdown, WorkerTerminate
from celery.worker import state

from celery_durable.logs import get_logger

logger = get_logger(__name__)


def report_errors(pool: Any) -> None:
    """Celery lets an error of the result backend, and sys.exit() in a task, escape from its tracer. With prefork the
    task fails then, or its process is lost. With solo and threads nobody would hear of it, and its message would be
    held for as long as the worker lives: here the same happens as with prefork."""
    if not isinstance(pool, solo.TaskPool | thread.TaskPool):
        return
    on_apply = pool.on_apply

    def apply(target: Callable[..., Any], *args: Any, **options: Any) -> Any:
        return on_apply(partial(_reporting, target), *args, **options)

    pool.on_apply = apply


def _reporting(target: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What Celery's tracer returns: whether it failed, the result or error, the run time."""
    try:
        return target(*args, **kwargs)
    except (WorkerShutdown, WorkerTerminate):
        raise
    except Exception:
        logger.exception("the end of a task was not stored")
        return True, ExceptionInfo(), 0.0
    except SystemExit as error:
        try:
            raise WorkerLostError(f"the task called sys.exit({error})") from error
        except WorkerLostError:
            return True, ExceptionInfo(), 0.0


def begun(pool: Any, requests: Iterable[Any]) -> list[Any]:
    """Those of the requests which a child process or a thread has got, and not ended. It may not have said yet that it
    runs them."""
    given = [request for request in requests if request._apply_result and request in state.reserved_requests]
    if isinstance(pool, prefork.TaskPool):
        return [request for request in given if _is_written(pool._pool, request._apply_result())]
    return given if isinstance(pool, thread.TaskPool) else []


def _is_written(pool: Any, job: Any) -> bool:
    # One that is to be written again, because the child has died, keeps its attributes.
    return bool(job and job._write_to and job._write_to._is_alive() and job not in pool.outbound_buffer)


@contextmanager
def keeping(pool: Any, requests: Iterable[Any]) -> Iterator[None]:
    """In this block Celery closes a connection, and the prefork pool drops the jobs that have not been accepted. Those
    of these requests go on: their child processes run them, and they would not be acknowledged, and run again."""
    if not isinstance(pool, prefork.TaskPool):
        yield
        return
    jobs = [job for request in requests if (job := request._apply_result and request._apply_result())]
    jobs = [job for job in jobs if not job._accepted]
    waiting = [job for job in jobs if job in pool._pool.outbound_buffer]
    for job in jobs:
        job._accepted = True
    try:
        yield
    finally:
        for job in jobs:
            job._accepted = job._time_accepted is not None
            lost = job in waiting or not (job._write_to and job._write_to._is_alive())
            if lost and not job._accepted and job._job in pool._pool._cache:
                pool._pool._put_back(job)  # for another child process
