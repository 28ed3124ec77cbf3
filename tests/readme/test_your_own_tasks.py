"""docs/your-own-tasks.md, followed step by step in a copy of the project: its files, its edits, its commands."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from readme.clone import PROJECT, ROOT, Clone

PAGE = (ROOT / "docs/your-own-tasks.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
CELERY_IMAGE = f"{PROJECT}/celery:local"


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """A clone with an image of its own: the page changes the code."""
    clone = Clone(tmp_path_factory.mktemp("own-tasks"))
    clone.environment["CELERY_IMAGE"] = CELERY_IMAGE
    yield clone
    clone.run(f"FORCE=1 make clean; docker image rm {CELERY_IMAGE}")


def write(folder: Path, block: str) -> None:
    """A whole file; its first line says which."""
    name, _, text = block.partition("\n")
    (folder / name.removeprefix("# ")).write_text(text)


def edit(folder: Path, block: str) -> None:
    """An edit; its first line says of which file."""
    name, *lines = block.splitlines()
    file = folder / name.removeprefix("# ")
    old = "\n".join(line[1:] for line in lines if line[0] == "-")
    new = "\n".join(line[1:] for line in lines if line[0] == "+")
    text = file.read_text()
    assert text.count(old) == 1, f"{file.name} does not have once: {old}"
    file.write_text(text.replace(old, new))


def test_every_step_works_as_the_page_says(clone: Clone) -> None:
    output = ""
    for kind, block in BLOCKS:
        match kind:
            case "python":
                write(clone.folder, block)
            case "diff":
                edit(clone.folder, block)
            case "sh":
                code, output = clone.run(f"set -e\n{block}")
                assert code == 0, f"{block}\n{output}"
            case "text":  # what was printed; … stands for anything
                for line in block.splitlines():
                    wanted = ".*".join(map(re.escape, line.split("…")))
                    assert re.search(rf"(^|\W){wanted}(\W|$)", output, re.MULTILINE), f"{line!r} not in:\n{output}"
            case _:
                raise AssertionError(f"a block of {kind}: this test does not know what to do with it")
