"""Fixtures of the tests of the documents."""

from collections.abc import Iterator

import pytest

from readme.clone import Clone


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """A clone for the tests of a module; removed afterwards with its containers and volumes."""
    clone = Clone(tmp_path_factory.mktemp("clone"))
    yield clone
    clone.run("FORCE=1 make clean")
