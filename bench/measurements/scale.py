"""Tasks of 50 ms on 1, 2, 4, 8 worker containers of the stack. bench/stack.py measures it."""

from bench.report import Column

TITLE = "Scale-out: tasks of 50 ms on worker containers with two slots each"
COLUMNS = (
    Column("rate", "tasks/s", digits=1, range=True),
    Column("part", "of slots ÷ 50 ms", digits=2, compared=False),
)

SECONDS = 0.05  # that a task takes
SLOTS = 2  # of a container
