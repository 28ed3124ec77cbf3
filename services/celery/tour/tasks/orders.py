"""Orders in a database, and a task for each. Not imported by the app: `celery worker --include=tour.tasks.orders`."""

import sqlite3
from contextlib import closing
from typing import Any

from celery_app import app

TABLES = """
CREATE TABLE IF NOT EXISTS orders (number INTEGER PRIMARY KEY, item TEXT);
CREATE TABLE IF NOT EXISTS outbox (number INTEGER PRIMARY KEY);
"""


class CrashError(Exception):
    """The program ends here, as after a power failure."""


def connect(path: str) -> "closing[sqlite3.Connection]":
    """A connection to the database; it is closed at the end of `with`."""
    connection = sqlite3.connect(path, timeout=30)
    connection.executescript(TABLES)
    return closing(connection)


@app.task(ignore_result=False)
def ship(path: str, number: int) -> str:
    """Ship an order, which is in the database."""
    with connect(path) as database:
        row = database.execute("SELECT item FROM orders WHERE number = ?", (number,)).fetchone()
    if row is None:
        raise LookupError(f"there is no order {number}")
    return f"shipped: {row[0]}"


def place_inside(path: str, number: int, queue: str) -> Any:
    """Publishes inside the transaction: here the task ends before the commit."""
    with connect(path) as database, database:  # the inner one commits
        database.execute("INSERT INTO orders VALUES (?, 'tea')", (number,))
        promise = ship.apply_async((path, number), queue=queue)
        promise.get(timeout=60, propagate=False)
    return promise


def place_after(path: str, number: int, queue: str, crash: bool = False) -> Any:
    """Publishes after the commit."""
    with connect(path) as database, database:
        database.execute("INSERT INTO orders VALUES (?, 'tea')", (number,))
    if crash:
        raise CrashError
    return ship.apply_async((path, number), queue=queue)


def place(path: str, number: int) -> None:
    """Writes the order and a row of the outbox in one transaction."""
    with connect(path) as database, database:
        database.execute("INSERT INTO orders VALUES (?, 'tea')", (number,))
        database.execute("INSERT INTO outbox VALUES (?)", (number,))


def relay(path: str, queue: str) -> list[Any]:
    """Publishes what is in the outbox, then deletes it: run it every second, and at each start."""
    with connect(path) as database:
        numbers = [number for (number,) in database.execute("SELECT number FROM outbox")]
        promises = [ship.apply_async((path, number), queue=queue) for number in numbers]
        with database:
            database.executemany("DELETE FROM outbox WHERE number = ?", [(number,) for number in numbers])
    return promises
