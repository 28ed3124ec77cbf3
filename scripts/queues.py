#!/usr/bin/env python3
"""`make queues`: updates the files that depend on the table of queues, services/celery/queues.py.

It writes a block between two marks, or a whole file; the rest of a file is not changed. Prints the files that it
changed. Needs only Python 3.9.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TABLE = "services/celery/queues.py"
BEGIN, END = f"# >>> queues: written by `make queues` from {TABLE}", "# <<< queues"


def load_table(root: Path) -> ModuleType:
    """The table of queues. Raises SystemExit for one that is not valid."""
    spec = importlib.util.spec_from_file_location("queues_table", root / TABLE)
    assert spec is not None
    assert spec.loader is not None
    table = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = table  # needed by dataclasses
    try:
        spec.loader.exec_module(table)
        names = [queue.name for queue in table.QUEUES]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"QUEUES: {', '.join(names) or 'it is empty'}; it must list each queue once")
        if table.DEFAULT not in table.QUEUES:
            raise ValueError(f"DEFAULT: {table.DEFAULT.name}; it must be one of QUEUES")
    except Exception as error:
        raise SystemExit(f"queues: {TABLE}: {error}") from error
    return table


def knob(queue: Any, what: str) -> str:
    """The queue's line in .env: WORKER_HIGH_REPLICAS."""
    return f"WORKER_{queue.name.upper().replace('-', '_')}_{what}"


def blocks(table: ModuleType) -> dict[str, list[list[str]]]:
    """The lines of the blocks of each file, in the order of the blocks."""
    queues = table.QUEUES
    names = ",".join(queue.name for queue in queues)
    services = []
    for queue in queues:
        services += [
            f"  worker-{queue.name}:",
            "    <<: *worker",
            f'    command: [python, worker.py, {queue.name}, "--concurrency=${{{knob(queue, "CONCURRENCY")}}}"]',
            f"    scale: ${{{knob(queue, 'REPLICAS')}}}",
            "",
        ]
    scale = " ".join(f"{queue.name.upper()}=n" for queue in queues)
    knobs = [f"# Worker containers of each queue; `make scale {scale}` edits these lines."]
    knobs += [f"{knob(queue, 'REPLICAS')}={queue.replicas}" for queue in queues]
    knobs += ["# Child processes (task slots) in each of them."]
    knobs += [f"{knob(queue, 'CONCURRENCY')}={queue.concurrency}" for queue in queues]
    workers = ", ".join(f"worker-{queue.name}" for queue in queues)
    return {
        "compose.yaml": [
            [
                f'x-queues: &queues "{names}"',
                f'x-priority-steps: &priority-steps "{",".join(map(str, range(table.PRIORITIES)))}"',
            ],
            services[:-1],
        ],
        ".env.example": [knobs],
        "prometheus/prometheus.yml": [
            [f"    dns_sd_configs: [{{ names: [{workers}], type: A, port: 9540, refresh_interval: 2s }}]"]
        ],
        "services/redis/broker.acl.template": [["    " + " ".join(f"~{queue.name}*" for queue in queues)]],
    }


def rules(table: ModuleType) -> str:
    """prometheus/rules/queues.yml: the longest allowed wait of each queue."""
    lines = [
        f"# Written by `make queues` from {TABLE}: limits for the alert OldestMessageTooOld.",
        "groups:",
        "  - name: queue limits",
        "    rules:",
    ]
    for queue in table.QUEUES:
        lines += [
            "      - record: queue:celery_queue_max_wait:seconds",
            f"        expr: vector({queue.max_wait})",
            f"        labels: {{ queue: {queue.name}, severity: {'critical' if queue.urgent else 'warning'} }}",
        ]
    return "\n".join(lines) + "\n"


def with_blocks(text: str, found: list[list[str]], name: str) -> str:
    """A file's text with new blocks."""
    pattern = re.compile(rf"^( *){re.escape(BEGIN)}\n.*?^ *{re.escape(END)}$", re.MULTILINE | re.DOTALL)
    if len(pattern.findall(text)) != len(found):
        raise SystemExit(
            f"queues: {name}: it must have {len(found)} blocks from {BEGIN!r} to {END!r}; restore the marks"
        )
    parts = iter(found)

    def fill(match: re.Match[str]) -> str:
        indent = match[1]
        return "\n".join([f"{indent}{BEGIN}", *next(parts), f"{indent}{END}"])

    return pattern.sub(fill, text)


def written(root: Path) -> dict[str, str]:
    """The required text of each file that depends on the queues."""
    table = load_table(root)
    files = {name: with_blocks((root / name).read_text(), found, name) for name, found in blocks(table).items()}
    return {**files, "prometheus/rules/queues.yml": rules(table)}


def main() -> None:
    """Write the files that differ."""
    for name, text in written(ROOT).items():
        file = ROOT / name
        if not file.exists() or file.read_text() != text:
            file.write_text(text)
            print(f"queues: wrote {name}")


if __name__ == "__main__":
    main()
