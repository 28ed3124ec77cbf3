"""The drain again, with options that cost or save time."""

from bench.measurements.drain import COLUMNS, sample

__all__ = ["COLUMNS", "TITLE", "sample"]

TITLE = "Drain: what options cost"
