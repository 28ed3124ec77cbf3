"""Messages that cannot be run, on the running stack; faults are in tests/faults."""

import subprocess
import time
from typing import Any

import pytest

from settings import DELIVERY
from stack import inside as run
from stack import web
from stack.inside import Inside
from stack.poll import poll_until
from stack.stack import Stack
from stack.web import Prometheus


def dead_letter(inside: Inside, newest: str, task_id: str, timeout: float = 30) -> dict[str, Any]:
    """The dead letter of a task; waits for it."""

    def found() -> dict[str, Any] | None:
        letters = inside.call(run.dead_letters, newest)
        return next((letter for letter in letters if letter["id"] == task_id), None)

    letter = poll_until(found, f"a dead letter of {task_id}", timeout)
    assert letter is not None
    return letter


def dlq(stack: Stack, *arguments: str) -> str:
    """Run the command of `make dlq`; returns its output."""
    client = [*stack.compose_command, "run", "--rm", "--no-deps", "-T", "client"]
    command = [*client, "python", "-m", "celery_durable", "-A", "celery_app", "dlq"]
    return subprocess.run([*command, *arguments], check=True, capture_output=True, text=True).stdout


def test_a_message_of_an_unknown_task_is_returned_for_a_while_and_then_dead_lettered(
    inside: Inside, newest: str
) -> None:
    """With a header that says it was returned almost to its limit."""
    began = time.time()
    task = inside.call(run.send_by_name, "tasks.of.tomorrow", {"unknown_for": DELIVERY.unknown_task_patience - 1})
    letter = dead_letter(inside, newest, task)
    assert (letter["reason"], letter["task"], letter["queue"]) == ("unknown task", "tasks.of.tomorrow", "low")
    died = int(letter["entry"].partition("-")[0]) / 1000
    assert died > began + DELIVERY.unknown_task_delay, "it was dead-lettered too early"


def test_a_dead_letter_is_counted_listed_requeued_and_dropped(
    stack: Stack, inside: Inside, prometheus: Prometheus, newest: str
) -> None:
    task = inside.call(run.send_by_name, "tasks.of.yesterday", {"unknown_for": DELIVERY.unknown_task_patience})
    letter = dead_letter(inside, newest, task)
    firing = 'ALERTS{alertname="DeadLetters", alertstate="firing"}'
    poll_until(lambda: prometheus.query("max(celery_dead_letters) > 0"), "the dead letter in Prometheus", 20)
    counted = 'sum(celery_dead_letters_total{queue="low", reason="unknown task"}) > 0'
    poll_until(lambda: prometheus.query(counted), "the worker's count of it in Prometheus", 20)
    poll_until(lambda: prometheus.query(firing), "the alert DeadLetters", 60)
    alerts = f"{stack.url('alertmanager')}/api/v2/alerts?filter=alertname=DeadLetters"
    poll_until(lambda: web.get(alerts, web.login("alertmanager")), "the alert in Alertmanager", 30)
    assert f"{letter['entry']:<18}" in dlq(stack)
    assert "unknown_for" in dlq(stack, "show", letter["entry"])
    assert f"requeued {letter['entry']}" in dlq(stack, "requeue", letter["entry"])
    # Its task is still unknown, but its patience starts again: a worker holds it, to return it in 5 s.
    poll_until(lambda: inside.call(run.take_out, task), "the message with a worker", 30)
    assert not [each for each in inside.call(run.dead_letters, newest) if each["id"] == task]
    poll_until(lambda: not prometheus.query(firing), "the alert to end", 60)


def test_a_message_that_is_too_large_is_refused_by_the_publisher(inside: Inside) -> None:
    assert inside.call(run.refused, "tasks.basic.echo", ["x" * 1_100_000]) == "MessageTooLargeError"


@pytest.mark.disruptive
@pytest.mark.parametrize(
    ("task", "options", "error", "within"),
    [
        ("tasks.basic.add", {}, "OperationalError", 16),
        ("tasks.basic.add", {"retry": False}, "OperationalError", 4),
        ("chaos.ledger.apply", {}, "", 4),
        ("chaos.ledger.apply", {"later": True}, "", 1),
    ],
    ids=["retried", "not retried", "outbox", "outbox, later"],
)
def test_a_publisher_is_not_blocked_by_a_frozen_broker(
    stack: Stack, inside: Inside, task: str, options: dict[str, Any], error: str, within: float
) -> None:
    args: list[Any] = [1, 2] if task == "tasks.basic.add" else [f"frozen-{time.time()}"]
    stack.compose.pause(["redis"])
    try:
        raised, seconds = inside.call(run.timed_publish, task, args, **options)
    finally:
        stack.compose.unpause(["redis"])
        stack.wait_healthy()
    assert raised == error
    assert seconds < within
