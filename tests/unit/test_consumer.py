"""The worker's consumer: what it makes of headers that are not what Celery takes for granted."""

from typing import Any

import pytest

from delivery.consumer import check_headers

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
