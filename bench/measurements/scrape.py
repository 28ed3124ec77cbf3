"""A scrape of each exporter of the stack, which has nothing else to do. bench/scrape.py measures it."""

from bench.report import Column

TITLE = "A scrape of an exporter"
COLUMNS = (
    Column("ms", "ms", digits=1, compared=False, range=True),
    Column("kib", "KiB", digits=1, compared=False),
    Column("redis", "broker's Redis µs/scrape", compared=False),
)
