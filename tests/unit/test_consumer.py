"""The worker's consumer: what it makes of headers that are not what Celery takes for granted."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from delivery.consumer import Consumer, check_headers, check_message
from delivery.dead_letters import Reason

GOOD = {"task": "tasks.basic.add", "id": "a"}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"root_id": None, "parent_id": None, "group": None, "eta": None, "expires": None, "retries": None},
        {"retries": 3, "timelimit": [60, None], "published_at": 1.5, "redelivered_at": 2},
        {"timelimit": None, "stamped_headers": ["run"], "an_unknown_header": object()},
    ],
)
def test_what_celery_sends_passes(more: dict[str, Any]) -> None:
    check_headers({**GOOD, **more})


def test_an_old_protocol_has_no_task_in_its_headers() -> None:
    check_headers({})


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("task", 7),
        ("id", None),
        ("id", {}),
        ("root_id", {}),
        ("parent_id", 1),
        ("group", []),
        ("eta", 1e9),
        ("expires", 60),
        ("retries", "3"),
        ("stamped_headers", "run"),
        ("published_at", "now"),
        ("redelivered_at", []),
        ("timelimit", 60),
        ("timelimit", [60]),
        ("timelimit", ["60", None]),
    ],
)
def test_what_celery_would_fall_over_is_named(header: str, value: object) -> None:
    with pytest.raises(TypeError, match=f"header {header}: "):
        check_headers({**GOOD, header: value})


@pytest.mark.parametrize("queue", [None, 7, {}])
def test_a_message_of_no_queue_is_named(queue: object) -> None:
    with pytest.raises(TypeError, match="routing_key: "):
        check_message(SimpleNamespace(headers=GOOD, delivery_info={"routing_key": queue}))


def test_a_message_that_cannot_even_be_buried_ends_no_worker(caplog: pytest.LogCaptureFixture) -> None:
    message = Mock(delivery_tag="a", reject_log_error=Mock(side_effect=ValueError("odd")))
    Consumer._bury(Mock(), message, Reason.MALFORMED, TypeError("odder"))
    assert "message a was not buried; it comes back" in caplog.text


def test_what_goes_back_after_a_reconnect_takes_no_place_of_the_new_connection() -> None:
    consumer = Mock(qos=(old := Mock()))
    message = Mock(headers={}, channel=None)
    Consumer.on_unknown_task(consumer, None, message, KeyError("tasks.of.tomorrow"))
    (_, put_back, arguments) = consumer.timer.call_after.call_args.args
    assert put_back is consumer._put_back
    consumer.qos = Mock()
    Consumer._put_back(consumer, *arguments)
    old.increment_eventually.assert_called_once_with()
    old.decrement_eventually.assert_called_once_with()
    consumer.qos.decrement_eventually.assert_not_called()
