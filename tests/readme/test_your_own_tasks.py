"""docs/your-own-tasks.md, followed step by step in a copy of the project: its files, its edits, its commands."""

from collections.abc import Iterator

import pytest

from readme.clone import PROJECT, ROOT, Clone
from readme.page import follow

CELERY_IMAGE = f"{PROJECT}/celery:local"


@pytest.fixture(scope="module")
def clone_of_its_own(clone: Clone) -> Iterator[Clone]:
    """A clone with its own image, since the page changes the code."""
    clone.environment["CELERY_IMAGE"] = CELERY_IMAGE
    yield clone
    clone.run(f"FORCE=1 make clean; docker image rm {CELERY_IMAGE}")


def test_every_step_works_as_the_page_says(clone_of_its_own: Clone) -> None:
    follow((ROOT / "docs/your-own-tasks.md").read_text(), clone_of_its_own)
