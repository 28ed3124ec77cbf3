"""`make chaos FAULT=worker-kill`: injects one fault into the running stack.

Tasks are published meanwhile, and the ledger is evaluated: exit code 1 if one was lost or applied twice, or a limit was
exceeded. The fault is always undone, also after Ctrl-C.
"""

import json
import signal
import subprocess
import sys

from faults.arena import Fault, healthy_again, run_fault, say
from faults.table import FAULTS
from interrupt import shield
from stack.inside import EndedError
from stack.stack import ROOT, Stack

# The others need an admin user of Redis or a separate disk, which the stack of `make test-faults` has.
CHOICES = {fault.name: fault for fault in FAULTS if not fault.admin}


def running_stack() -> Stack:
    """The user's stack. Raises SystemExit if it is not up."""
    config = subprocess.run(
        ["docker", "compose", "config", "--format", "json"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    stack = Stack(json.loads(config)["name"])
    needed = {"redis", "redis-results", "worker-low", "worker-high", "beat"}
    missing = sorted(name for name in needed if not stack.containers(name))
    unhealthy = stack.unhealthy()
    if missing or unhealthy:
        raise SystemExit(f"chaos: not all services are healthy: {', '.join(missing + unhealthy)}; make up")
    return stack


def choose(name: str) -> Fault:
    """The fault of this name. Raises SystemExit."""
    if name in CHOICES:
        return CHOICES[name]
    width = max(map(len, CHOICES))
    lines = [f"  {fault.name:<{width}}  {fault.what}" for fault in CHOICES.values()]
    elsewhere = ", ".join(fault.name for fault in FAULTS if fault.admin)
    said = f"no fault {name!r}; choose from:" if name else "choose from:"
    print("\n".join([f"FAULT: {said}", *lines, f"Only `make test-faults` has: {elsewhere}."]), file=sys.stderr)
    raise SystemExit(2)


def interrupted(*_: object) -> None:
    shield()
    say("stopping and undoing")
    raise KeyboardInterrupt


def main(arguments: list[str]) -> int:
    """Inject the fault, and print the result."""
    fault = choose(" ".join(arguments))
    stack = running_stack()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, interrupted)
    print(f"{fault.name}: {fault.what}")
    where = f" at {stack.url('grafana')}" if stack.containers("grafana") else " (`make up` says where)"
    print(f"watch{where}: {fault.watch}\n")
    say("tasks are being published; Ctrl-C stops and undoes everything")
    try:
        return 1 if run_fault(stack, fault).wrong else 0
    except KeyboardInterrupt:
        healthy_again(stack)
        return 130
    except EndedError:
        raise SystemExit(
            "chaos: ended, since its client container was, as by make down; the result is unknown"
        ) from None
    finally:
        stack.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
