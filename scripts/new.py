"""`make new DIR=../shop`: creates your own stack in a new folder, as a copy of this project without the demo.

Copies the files of `TAKEN` except those of `DEMO`, removes what is marked as demo in them (from `# >>> demo` to
`# <<< demo`, and lines that end in `# demo`), inserts the folder's name, and adds the files of scripts/new/.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ADDED = ROOT / "scripts/new"
NAME = "celery-stack"  # of this project

TAKEN = (
    ".dockerignore",
    ".env.example",
    ".gitignore",
    "Makefile",
    "compose.yaml",
    "grafana",
    "offline",
    "packages",
    "prometheus",
    "pyproject.toml",
    "scripts",
    "services",
    "tests/conftest.py",
    "tests/interrupt.py",
    "tests/progress.py",
    "tests/requirements.in",
    "tests/requirements.txt",
    "tests/stack",
    "tests/unit",
)
DEMO = (
    "packages/celery-durable/tests/conftest.py",
    "packages/celery-durable/tests/installed",
    "packages/celery-durable/tests/malformed.py",
    "packages/celery-durable/tests/project.py",
    "packages/celery-durable/tests/test_*.py",
    "packages/celery-durable/tests/upstream",
    "scripts/bench.sh",
    "scripts/lessons.sh",
    "scripts/new",
    "scripts/new.py",
    "services/celery/ask.py",
    "services/celery/chaos",
    "services/celery/client.py",
    "services/celery/producer.py",
    "services/celery/search",
    "services/celery/tasks/advanced.py",
    "services/celery/tasks/basic.py",
    "services/celery/tasks/notes.py",
    "services/celery/tasks/search.py",
    "services/celery/tasks/shared.py",
    "services/celery/tasks/workflows.py",
    "services/celery/tour",
    "services/celery/traffic.py",
    "services/celery/traffic.toml",
    "tests/stack/guide.py",
    "tests/stack/sabotages.py",
    "tests/stack/test_delivery.py",
    "tests/stack/test_faults.py",
    "tests/stack/test_metrics.py",
    "tests/stack/test_producer.py",
    "tests/stack/test_queues.py",
    "tests/stack/test_scale.py",
    "tests/stack/test_search.py",
    "tests/stack/test_stop.py",
    "tests/stack/test_tasks.py",
    "tests/stack/test_tour.py",
    "tests/unit/test_bench.py",
    "tests/unit/test_corpus.py",
    "tests/unit/test_docs.py",
    "tests/unit/test_fleet.py",
    "tests/unit/test_index.py",
    "tests/unit/test_kills.py",
    "tests/unit/test_ledger.py",
    "tests/unit/test_maintenance.py",
    "tests/unit/test_new.py",
    "tests/unit/test_producer.py",
    "tests/unit/test_search.py",
    "tests/unit/test_tasks.py",
    "tests/unit/test_tour.py",
    "tests/unit/test_words.py",
)
# Changes that marks cannot express: inside an expression, and for the example of scripts/new/.
CHANGED = (
    ("prometheus/rules/recording.yml", 'task!~"(tasks.(basic|workflows|advanced)|tour.tasks)[.].+", ', ""),
    (
        "services/celery/settings.py",
        '        "tasks.maintenance",\n',
        '        "tasks.maintenance",\n        "tasks.orders",\n',
    ),
    ("services/redis/results.acl.template", "    ~canary:* ", "    ~orders:* ~canary:* "),
)

BLOCK = re.compile(r"^[^\n]*# >>> demo.*?^[^\n]*# <<< demo[^\n]*\n", re.MULTILINE | re.DOTALL)
LINE = re.compile(r"^[^\n]*# (?:[^\n]*; )?demo\n", re.MULTILINE)


def without_demo(text: str) -> str:
    """A file's text without the marked parts."""
    return re.sub(r"\n{4,}", "\n\n\n", LINE.sub("", BLOCK.sub("", text))).rstrip("\n") + "\n" * text.endswith("\n")


REQUIRED_BY = re.compile(r"^    # (?:via|  ) *(\S.*)$", re.MULTILINE)


def without_packages(lock: str, dropped: set[str]) -> str:
    """A lock file for a requirements.in without some packages: without these, and without what only they need."""
    entries = {re.split("==", entry)[0]: entry for entry in re.split(r"(?m)^(?=[a-z])", lock) if entry}

    def is_needed(name: str) -> bool:
        return any(
            name not in dropped if each.startswith("-r ") else each in entries
            for each in REQUIRED_BY.findall(entries[name])
        )

    while unneeded := [name for name in entries if not is_needed(name)]:
        for name in unneeded:
            del entries[name]
    return "".join(entries.values())


def files() -> Iterator[Path]:
    """The files to copy, relative to this project's folder."""
    for taken in TAKEN:
        path = ROOT / taken
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            name = file.relative_to(ROOT)
            if (
                file.is_file()
                and "__pycache__" not in name.parts
                and not any(name.is_relative_to(each) or name.match(each) for each in DEMO)
            ):
                yield name


def target(text: str) -> Path:
    """The folder to create. Raises SystemExit."""
    if not text:
        raise SystemExit("new: DIR is not set: make new DIR=../shop")
    folder = Path(text).expanduser().resolve()
    if not re.fullmatch("[a-z0-9][a-z0-9_-]*", folder.name):
        raise SystemExit(
            f"new: DIR={text}: the last part is the project's name, and {folder.name!r} is not valid: lower-case "
            "letters, digits, dashes and underscores, the first a letter or a digit"
        )
    if folder.is_relative_to(ROOT):
        raise SystemExit(f"new: DIR={text}: it is inside this project; choose a folder outside")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SystemExit(f"new: DIR={text}: it exists and is not empty; choose another folder")
    return folder


def write(folder: Path) -> None:
    """Write all files that are not generated."""
    for name in files():
        copy = folder / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        text = without_demo((ROOT / name).read_text())
        for changed, old, new in CHANGED:
            if changed == str(name):
                assert old in text, f"{name} does not have: {old}"
                text = text.replace(old, new)
        if name.name == "requirements.txt":
            wanted = (ROOT / name).with_suffix(".in").read_text()
            text = without_packages(text, set(re.findall(r"^([\w-]+)\S* # demo$", wanted, re.MULTILINE)))
        copy.write_text(text.replace(NAME, folder.name))
        copy.chmod((ROOT / name).stat().st_mode)
    for file in ADDED.rglob("*"):
        if file.is_file() and "__pycache__" not in file.parts:
            copy = folder / file.relative_to(ADDED)
            copy.write_text(file.read_text().replace(NAME, folder.name))


def generate(folder: Path) -> None:
    """Write the files that depend on the table of queues, which is different without the demo."""
    subprocess.run([sys.executable, "scripts/queues.py"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    path = os.pathsep.join(str(folder / part) for part in ("grafana/src", "services/celery"))
    subprocess.run(
        [sys.executable, "-m", "dashboards"],
        cwd=folder / "grafana/src",
        env={**os.environ, "PYTHONPATH": path},
        check=True,
    )


def main(arguments: list[str]) -> None:
    folder = target(arguments[0] if arguments else "")
    existed = folder.exists()
    try:
        write(folder)
        generate(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        if existed:
            folder.mkdir()
        raise
    print(f"new: created {folder}, the project {folder.name}. Next: cd {arguments[0]}, make up; see its README.md.")


if __name__ == "__main__":
    main(sys.argv[1:])
