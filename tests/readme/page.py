"""A page of the documentation, followed step by step in a clone: its files, its edits, its commands."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from readme.clone import Shell


def follow(page: str, shell: Shell, effects: Mapping[str, Callable[[], None]] | None = None) -> None:
    """Follow each block of a page: python is a file, diff an edit, sh a command, text its output.

    `effects`: a part of a command, and a check of what must hold after it. Each must be on the page.
    """
    output, effects = "", dict(effects or {})
    for kind, block in re.findall(r"^```(\w+)\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        match kind:
            case "python":
                _write(shell.folder, block)
            case "diff":
                _edit(shell.folder, block)
            case "sh":
                output = shell.output(block)
                for part in [part for part in effects if part in block]:
                    effects.pop(part)()
            case "text":  # … stands for anything
                for line in block.splitlines():
                    wanted = ".*".join(map(re.escape, line.split("…")))
                    assert re.search(rf"(^|\W){wanted}(\W|$)", output, re.MULTILINE), f"{line!r} not in:\n{output}"
            case _:
                raise AssertionError(f"a block of unknown kind {kind}")
    assert not effects, "commands that are not on the page"


def _write(folder: Path, block: str) -> None:
    """Write a file, which the block's first line names."""
    name, _, text = block.partition("\n")
    (folder / name.removeprefix("# ")).write_text(text)


def _edit(folder: Path, block: str) -> None:
    """Edit a file, which the block's first line names."""
    name, *lines = block.splitlines()
    file = folder / name.removeprefix("# ")
    old = "\n".join(line[1:] for line in lines if line[0] == "-")
    new = "\n".join(line[1:] for line in lines if line[0] == "+")
    text = file.read_text()
    assert text.count(old) == 1, f"{file.name} does not have once: {old}"
    file.write_text(text.replace(old, new))
