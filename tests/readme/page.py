"""A page of the documentation, followed step by step in a clone: its files, its edits, its commands."""

import re
from pathlib import Path

from readme.clone import Shell


def follow(page: str, shell: Shell) -> None:
    """Do what each block of a page says: python is a file, diff an edit, sh is run, text is what was printed."""
    output = ""
    for kind, block in re.findall(r"^```(\w+)\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        match kind:
            case "python":
                _write(shell.folder, block)
            case "diff":
                _edit(shell.folder, block)
            case "sh":
                output = shell.output(block)
            case "text":  # … stands for anything
                for line in block.splitlines():
                    wanted = ".*".join(map(re.escape, line.split("…")))
                    assert re.search(rf"(^|\W){wanted}(\W|$)", output, re.MULTILINE), f"{line!r} not in:\n{output}"
            case _:
                raise AssertionError(f"a block of {kind}: nobody knows what to do with it")


def _write(folder: Path, block: str) -> None:
    """A whole file; its first line says which."""
    name, _, text = block.partition("\n")
    (folder / name.removeprefix("# ")).write_text(text)


def _edit(folder: Path, block: str) -> None:
    """An edit; its first line says of which file."""
    name, *lines = block.splitlines()
    file = folder / name.removeprefix("# ")
    old = "\n".join(line[1:] for line in lines if line[0] == "-")
    new = "\n".join(line[1:] for line in lines if line[0] == "+")
    text = file.read_text()
    assert text.count(old) == 1, f"{file.name} does not have once: {old}"
    file.write_text(text.replace(old, new))
