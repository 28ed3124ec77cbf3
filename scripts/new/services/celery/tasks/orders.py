"""An example: a task that must run, and whose effect must be applied exactly once."""

from typing import Annotated

from pydantic import Field
from redis.client import Pipeline

from celery_app import app, durable
from tasks.arguments import Name, checked

Cents = Annotated[int, Field(gt=0, le=10_000_000)]
KEPT_FOR = 30 * 86_400  # s; a duplicate of an order arrives within this time


# outbox: it is published again until it has ended, even if Redis loses the message.
@app.task(outbox=True, ignore_result=False)
@checked
def charge(order: Name, cents: Cents) -> int:
    """Add an order's price to the takings. A second run of the same order adds nothing. Returns the price."""

    def effect(pipe: Pipeline) -> int:
        pipe.incrby("orders:takings", cents)
        return cents

    return int(durable.once(f"orders:charged:{order}", effect, ttl=KEPT_FOR).result)
