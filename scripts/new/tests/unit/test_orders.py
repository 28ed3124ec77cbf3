"""The example task, run in this process with a real Redis."""

import pytest
from redis import Redis

from tasks.arguments import ArgumentError
from tasks.orders import charge


@pytest.fixture
def store(client: Redis, monkeypatch: pytest.MonkeyPatch, eager: None) -> Redis:
    """The tasks' Redis."""
    monkeypatch.setattr("celery_durable.Durable.store", client)
    return client


def test_an_order_that_comes_twice_is_charged_once(store: Redis) -> None:
    assert charge.delay("A-17", 500).get() == 500
    assert charge.delay("A-17", 500).get() == 500
    assert charge.delay("A-18", 250).get() == 250
    assert store.get("orders:takings") == "750"


def test_a_wrong_price_changes_nothing(store: Redis) -> None:
    with pytest.raises(ArgumentError, match="cents: should be greater than 0; it is -1"):
        charge.delay("A-17", -1).get()
    assert not store.exists("orders:takings")
