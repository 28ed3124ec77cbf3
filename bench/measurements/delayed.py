"""The drain again, and the workers' memory after it, without and with a million messages that wait for their ETA."""

from bench.measurements.drain import sample
from bench.report import Column

__all__ = ["COLUMNS", "TITLE", "sample"]

TITLE = "Drain: what a million delayed messages cost"
COLUMNS = (
    Column("rate", "tasks/s", compared=False, range=True),
    Column("cpu", "CPU µs/task", compared=False),
    Column("redis", "Redis µs/task", compared=False),
    Column("memory", "workers' MiB", digits=1, compared=False),
)
