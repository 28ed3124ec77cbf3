"""In a container of the stack: publishes tasks for workers that run, and prints their rate.

`python -m bench.follow stack_app noop 1000 2`: so many no-ops, for so many processes; `pause`: tasks of 50 ms.
"""

import sys
import time
from importlib import import_module

from bench.measurements.drain import check, rate
from bench.measurements.scale import SECONDS
from bench.system import Server, wait


def main(app: str, task: str, tasks: int, processes: int) -> None:
    server = Server()
    module = import_module(f"bench.apps.{app}")
    server.forget()
    for number in range(tasks):
        if task == "pause":
            module.pause.delay(number, SECONDS)
        else:
            module.send(number)
    wait(lambda: server.arrived() == processes, f"{processes} processes to take their first task")
    began = time.monotonic()
    server.go()
    value = rate(server, tasks, began)
    check(server, tasks)
    print(value)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
