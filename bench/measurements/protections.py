"""The drain again, of a task with an effect in Redis, without and with each protection."""

from bench.measurements.drain import COLUMNS, sample

__all__ = ["COLUMNS", "TITLE", "sample"]

TITLE = "Drain: what the protections of an effect cost"
