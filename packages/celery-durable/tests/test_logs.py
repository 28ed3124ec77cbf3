"""A text of a message forges no line of a log and sends no control character to a terminal."""

import io
import json
import logging
from typing import Any

import pytest
from celery.app.log import TaskFormatter
from celery.utils.log import ColorFormatter
from redis import Redis

from celery_durable import dead_letters
from celery_durable.dead_letters import Reason
from celery_durable.logs import Escaping, connect_logging, escaped

from . import malformed
from .conftest import NewProject
from .poll import poll_until

EVIL = "a\x1b[31mb\nCRITICAL forged"
SHOWN = "a\\x1b[31mb\\nCRITICAL forged"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain, é and 日本", "plain, é and 日本"),
        (EVIL, SHOWN),
        (ValueError("a\rb"), "a\\rb"),
        ("\x9b2J \u2028 \u202e \udc80", "\\x9b2J \\u2028 \\u202e \\udc80"),
        (7, "7"),
    ],
)
def test_what_is_not_printable_is_escaped(value: object, shown: str) -> None:
    assert escaped(value) == shown
    assert escaped(shown) == shown


def test_the_librarys_own_lines_are_escaped_however_logging_is_set_up(
    app: Any, client: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    payload = json.dumps(malformed.message(headers={"task": EVIL, "id": EVIL})).encode()
    with app.durable.raw_broker() as broker:
        new = dead_letters.letter(Reason.REJECTED, EVIL, EVIL, payload, 10_000)
        app.durable.dead_letters.add(broker, new, app)
        (stored,) = app.durable.dead_letters.read(broker)
    (line,) = caplog.messages
    assert line == f"dead letter of queue {SHOWN}: rejected by its task; {SHOWN}[{SHOWN}] {SHOWN}"
    assert (stored.task, stored.task_id, stored.error, stored.payload) == (EVIL, EVIL, EVIL, payload), "as it came"


@pytest.mark.parametrize("kind", [ColorFormatter, TaskFormatter])
def test_celerys_records_begin_a_line_and_their_other_lines_are_indented(kind: type[ColorFormatter]) -> None:
    from celery import signals

    output, logger = io.StringIO(), logging.Logger("tests")
    logger.addHandler(handler := logging.StreamHandler(output))
    handler.setFormatter(kind("%(levelname)s %(message)s", use_color=True))
    connect_logging()
    signals.after_setup_logger.send(sender=None, logger=logger)
    signals.after_setup_logger.send(sender=None, logger=logger)
    assert isinstance(handler.formatter, Escaping)
    try:
        raise ValueError(EVIL)
    except ValueError:
        logger.exception("failed: %s", EVIL)
    text = output.getvalue()
    assert text.startswith("\x1b[1;31mERROR failed: a\\x1b[31mb\n    CRITICAL forged\n    Traceback"), "in its color"
    assert [line for line in text.splitlines()[1:] if not line.startswith("    ")] == []
    assert text.count("\x1b") == 2


def test_a_formatter_of_the_app_is_left_alone() -> None:
    from celery import signals

    logger = logging.Logger("tests")
    logger.addHandler(handler := logging.StreamHandler())
    handler.setFormatter(own := logging.Formatter())
    signals.after_setup_logger.send(sender=None, logger=logger)
    assert handler.formatter is own
    assert type(own) is logging.Formatter


TASKS = """
from celery.utils.log import get_task_logger


@app.task(name="says", shared=False)
def says(text):
    get_task_logger("project").warning("it says %s", text)
    print(text)
    note("said")
    raise RuntimeError(text)
"""


def test_a_worker_logs_no_line_that_a_message_forged(new_project: NewProject) -> None:
    project = new_project(TASKS, {"worker_log_color": False})
    worker = project.worker("-c", "1")
    begin = len(worker.log)
    for headers in (
        {"task": "says", "id": EVIL, "shadow": EVIL, "argsrepr": EVIL, "kwargsrepr": EVIL},
        {"task": EVIL, "id": EVIL},
        {"task": "says", "retries": EVIL},
    ):
        message = malformed.message([[EVIL], {}, {}], headers)
        message["properties"]["delivery_info"]["routing_key"] = EVIL
        project.client.lpush("celery", json.dumps(message))
    project.wait_noted("said")
    poll_until(lambda: project.client.xlen("celery-durable:dead-letters") == 2, "two dead letters")
    worker.wait_for("raised unexpected")
    log = worker.log[begin:]
    assert "\x1b" not in log
    assert "forged" in log
    assert [line for line in log.splitlines() if line and not line.startswith(("[20", "    "))] == []


CANARY = "canary-7Jq2"


def test_a_worker_logs_no_arguments(new_project: NewProject) -> None:
    """They may be secret: neither of tasks that run or fail, nor of messages that cannot be run."""
    project = new_project(
        """
@app.task(name="add", shared=False)
def add(a, b):
    note("added")
"""
    )
    worker = project.worker("-c", "1")
    add, quoted = project.app.tasks["add"], {"argsrepr": repr(CANARY), "kwargsrepr": repr(CANARY)}
    add.delay(CANARY, CANARY)
    add.apply_async((CANARY, CANARY), countdown=0.1)
    project.app.send_task("unknown", (CANARY,))
    bodies = [
        [[CANARY], {}, {}],
        [CANARY, {}, {}],
        [[], {}, {CANARY: 1}],
        [[], {}, {"chain": CANARY}],
        CANARY,
        {"x": CANARY},
    ]
    for message in (
        *(malformed.message(body, quoted) for body in bodies),
        malformed.message([[CANARY], {}, {}], {"eta": "soon", **quoted}),
        malformed.message([[CANARY], {}, {}], {"task": None, **quoted}),
        malformed.message({"x": CANARY}, quoted),
        {**malformed.message({"x": CANARY}), "headers": {}},
        {**malformed.message([[CANARY], {}, {}]), "headers": {}},
        malformed.old_protocol(args=CANARY),
        malformed.old_protocol(task="unknown", args=[CANARY]),
    ):
        project.client.lpush("celery", json.dumps(message))
    project.wait_noted("added", 2)
    poll_until(lambda: project.client.xlen("celery-durable:dead-letters") == 13, "13 dead letters")
    worker.wait_for("raised unexpected: TypeError")
    assert "(not logged: it may be secret)" in worker.log
    assert CANARY not in worker.log
