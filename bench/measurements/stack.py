"""No-op tasks on the stack as it ships: its containers, two Redis, events, metrics, exporters, Prometheus, beat. Beside
it a worker of stock Celery as its documentation begins: broker and results. bench/stack.py measures both.
"""

from bench.report import Column

TITLE = "The stack as it ships"
COLUMNS = (Column("rate", "tasks/s", range=True),)
