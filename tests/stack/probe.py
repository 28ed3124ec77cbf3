"""Runs beside a container, in its network and process namespaces, as its user and with no more rights than it has.

So it has the same view and rights as the container's own program, whatever its image contains (some have no shell).
`python probe.py '{"connect": [[host, port], …]}'` prints one JSON object.
"""

import contextlib
import json
import os
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

CONNECT_TIMEOUT = 2  # s; across networks packets are dropped, not refused
ROOT = Path("/proc/1/root")  # the container's root file system, through its first process


def processes() -> list[dict[str, Any]]:
    """The container's processes, without this one: user, capabilities, no-new-privileges."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal() or folder.name == str(os.getpid()):
            continue
        with contextlib.suppress(OSError):
            lines = (line.split(":", 1) for line in (folder / "status").read_text().splitlines())
            status = {name: value.split() for name, value in lines}
            if status["Name"][0].startswith("runc:["):
                continue  # the engine's own process, root until it executes a health check
            found.append(
                {
                    "pid": int(folder.name),
                    "name": status["Name"][0],
                    "users": sorted({int(user) for user in status["Uid"]}),
                    # The bounding set as well: for users other than root the other sets are always empty.
                    "capabilities": sum(int(status[name][0], 16) for name in ("CapEff", "CapPrm", "CapBnd")),
                    "no_new_privileges": status["NoNewPrivs"] == ["1"],
                }
            )
    return found


def can_write(folder: Path) -> bool:
    """Whether a file can be created in a folder."""
    file = folder / f".probe-{os.getpid()}"
    try:
        file.write_bytes(b"")
    except OSError:
        return False
    file.unlink()
    return True


def writable() -> list[str]:
    """Writable mount points and folders (two levels deep) of the container; of nested ones only the topmost."""
    folders = {"/", *(line.split()[4] for line in Path("/proc/1/mountinfo").read_text().splitlines())}
    for top in folders_in(ROOT):
        folders.update([f"/{top.name}", *(f"/{top.name}/{below.name}" for below in folders_in(top))])
    # Without the engine's own: /dev/shm is a memory file system within the container's limit.
    ours = [folder for folder in folders if not folder.startswith(("/proc", "/sys", "/dev"))]
    found = [folder for folder in ours if can_write(ROOT / folder.lstrip("/"))]
    return sorted(folder for folder in found if not any(folder.startswith(f"{above}/") for above in found))


def folders_in(folder: Path) -> list[Path]:
    """Folders in a folder of the container. Without links, which would lead to the probe's own files."""
    with contextlib.suppress(OSError):
        return [entry for entry in folder.iterdir() if entry.is_dir() and not entry.is_symlink()]
    return []


def cgroup_limits() -> dict[str, int]:
    """The container's limits in the kernel: memory (bytes) and pids. Version 1 and 2 of cgroups."""
    files = {
        "memory": ("memory.max", "memory/memory.limit_in_bytes"),
        "pids": ("pids.max", "pids/pids.max"),
    }
    limits = {}
    for name, candidates in files.items():
        for candidate in candidates:
            file = ROOT / "sys/fs/cgroup" / candidate
            if file.exists():
                text = file.read_text().strip()
                limits[name] = -1 if text == "max" else int(text)
    return limits


def connects(host: str, port: int) -> bool:
    """Whether a TCP connection succeeds."""
    try:
        socket.create_connection((host, port), timeout=CONNECT_TIMEOUT).close()
    except OSError:
        return False
    return True


def main() -> None:
    request = json.loads(sys.argv[1])
    with ThreadPoolExecutor(64) as pool:
        reached = pool.map(lambda address: connects(*address), request["connect"])
        report = {
            "processes": processes(),
            "writable": writable(),
            "limits": cgroup_limits(),
            "reached": [address for address, yes in zip(request["connect"], reached, strict=True) if yes],
        }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
