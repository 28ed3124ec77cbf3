"""`make chaos FAULT=worker-kill`: one fault on the stack that runs, for somebody who watches it.

Tasks are published meanwhile, and the ledger judges: exit code 1 when one was lost or applied twice, or a bound
was not kept. Whatever happens, Ctrl-C too, the fault is undone.
"""

import json
import signal
import subprocess
import sys

from faults.arena import Fault, run_fault, say
from faults.table import FAULTS
from stack.stack import ROOT, Stack

# The others take an administrator of Redis or a disk of their own: the stack of `make test-faults` has them.
CHOICES = {fault.name: fault for fault in FAULTS if not fault.admin}


def running_stack() -> Stack:
    """The user's stack. Raises SystemExit when it is not up."""
    config = subprocess.run(
        ["docker", "compose", "config", "--format", "json"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    stack = Stack(json.loads(config)["name"])
    needed = {"redis", "redis-results", "worker-low", "worker-high", "beat"}
    missing = sorted(name for name in needed if not stack.containers(name))
    unwell = stack.unwell()
    if missing or unwell:
        raise SystemExit(f"chaos: not all is up and healthy: {', '.join(missing + unwell)}; make up")
    return stack


def choose(name: str) -> Fault:
    """The fault of this name. Raises SystemExit."""
    if name in CHOICES:
        return CHOICES[name]
    width = max(map(len, CHOICES))
    lines = [f"  {fault.name:<{width}}  {fault.what}" for fault in CHOICES.values()]
    elsewhere = ", ".join(fault.name for fault in FAULTS if fault.admin)
    said = f"no fault {name!r}; choose from:" if name else "which fault?"
    print("\n".join([f"FAULT: {said}", *lines, f"Only `make test-faults` has: {elsewhere}."]), file=sys.stderr)
    raise SystemExit(2)


def main(arguments: list[str]) -> int:
    """Do it, and say what came of it."""
    fault = choose(" ".join(arguments))
    stack = running_stack()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print(f"{fault.name}: {fault.what}")
    where = f" at {stack.url('grafana')}" if stack.containers("grafana") else " (`make up` says where)"
    print(f"watch{where}: {fault.watch}\n")
    say("tasks are being published; Ctrl-C ends all of this and undoes it")
    return 1 if run_fault(stack, fault).wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        say("ended and undone")
        sys.exit(130)
