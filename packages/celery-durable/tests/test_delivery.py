"""Delivery as a whole, with real workers: held messages run once, and lost ones run again."""

import json
import time
from typing import Any

import pytest
from redis import Redis

from celery_durable.dead_letters import Reason

from . import malformed
from .conftest import NewProject
from .poll import poll_until
from .project import Project
from .redis_server import RedisServer

TASKS = """
from celery.exceptions import Reject


def task(**options):
    return app.task(bind=True, shared=False, ignore_result=True, **options)


@task(name="quick", outbox=True)
def quick(self):
    note("ran", self.request.id)


@task(name="long", outbox=True)
def long(self):
    note("started", self.request.id)
    time.sleep(2.5)
    note("ran", self.request.id)


@task(name="limited", outbox=True, rate_limit="60/m")
def limited(self):
    note("ran", self.request.id)


@task(name="applied", outbox=True)
def applied(self, key):
    durable.once(f"once:{key}", lambda pipe: pipe.incr(f"effect:{key}") and None)


@task(name="plain")
def plain(self):
    note("ran", self.request.id)


@task(name="rejected")
def rejected(self):
    raise Reject("because", requeue=False)


@task(name="deadly", max_retries=3)
def deadly(self):
    note("deadly", self.request.id)
    os.kill(os.getpid(), 9)
"""


# Where a test waits for what a killed worker held.
SHORTER: dict[str, Any] = {
    "visibility_timeout": 4,
    "renew_interval": 1,
    "time_limit": 3.5,
    "soft_time_limit": 3,
    "max_delay": 3.5,
    "publish_connect_timeout": 0.3,
    "publish_socket_timeout": 0.6,
    "republish_after": 6,
}


# --- The outbox and what workers hold ---


# Replaces an entry that has not ended meanwhile, and makes it due. KEYS: outbox, due. ARGV: id, JSON.
MAKE_OLD = """
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then
    redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
    redis.call('ZADD', KEYS[2], 0, ARGV[1])
end
"""


def make_old(project: Project) -> None:
    """Date all outbox entries to long ago, and make them due for the reconciler."""
    outbox, client = project.app.durable.outbox, project.client
    for task_id, text in client.hgetall(outbox.key).items():
        old = json.dumps({**json.loads(text), "published": time.time() - 1000})
        client.eval(MAKE_OLD, 2, outbox.key, outbox.due_key, task_id, old)


def test_nothing_that_waits_or_is_held_is_published_again(new_project: NewProject) -> None:
    """In an earlier version five did run twice: workers held them, and the queue's next message was newer."""
    project = new_project(TASKS)
    worker = project.worker("-c", "2")
    tasks = project.app.tasks
    for number in range(3):
        tasks["quick"].apply_async(task_id=f"eta {number}", countdown=4)
        tasks["limited"].apply_async(task_id=f"limited {number}")
    for number in range(2):
        tasks["long"].apply_async(task_id=f"long {number}")
    project.wait_noted("started", 2)
    for number in range(3):
        tasks["quick"].apply_async(task_id=f"waiting {number}")
    expected = [f"{kind} {number}" for kind in ("eta", "limited", "waiting") for number in range(3)]

    def ended() -> bool:
        make_old(project)
        assert project.app.durable.reconcile()["published"] == 0
        return not project.client.exists(project.app.durable.outbox.key)

    poll_until(ended, "all entries to end")
    assert sorted(project.noted("ran")) == sorted([*expected, "long 0", "long 1"])
    assert "published again" not in worker.log


def test_what_is_lost_is_published_again_and_runs_once(new_project: NewProject) -> None:
    """Also if the lost message appears again while the new one waits, or after it has ended."""
    project = new_project(TASKS)
    project.app.tasks["quick"].apply_async(task_id="a")
    lost = project.client.rpop("celery")
    make_old(project)
    assert project.app.durable.reconcile()["published"] == 1
    project.client.rpush("celery", lost)
    worker = project.worker("-c", "1")
    project.wait_noted("ran")
    poll_until(lambda: not project.client.exists(project.app.durable.outbox.key), "the entry to end")
    project.client.rpush("celery", lost)
    project.app.tasks["quick"].apply_async(task_id="b")
    project.wait_noted("ran", 2)
    assert project.noted("ran") == ["a", "b"]
    assert worker.log.count("Task quick[a] ignored") == 2


# --- A worker that holds as much as it may ---


def test_a_worker_at_its_prefetch_limit_uses_all_its_slots(new_project: NewProject) -> None:
    """With messages that wait for their ETA in a worker. kombu removes a prefetch slot for each message beyond the
    limit, until one is left."""
    project = new_project(TASKS, transport="stock", max_held=5)
    project.worker("-c", "2")
    for number in range(20):
        project.stock_app.send_task("plain", task_id=f"{number}", countdown=3)
    poll_until(lambda: int(project.client.hlen("unacked")) == 5, "5 messages to be held")
    assert project.client.llen("celery") == 15
    project.wait_noted("ran", 20)
    stats = project.app.control.inspect(["worker@test"], timeout=20).stats()["worker@test"]
    assert stats["prefetch_count"] == 2
    for number in range(2):
        project.app.tasks["long"].apply_async(task_id=f"long {number}")
    project.wait_noted("started", 2)
    assert not {"long 0", "long 1"} & set(project.noted("ran")), "both at once"


# --- Redis that is killed ---


def test_a_worker_survives_a_redis_that_is_killed_under_load(
    new_project: NewProject, redis_server: RedisServer
) -> None:
    """And each task in the outbox is applied, once."""
    project = new_project(TASKS, {"broker_connection_retry_on_startup": True})
    worker = project.worker("-c", "2")
    published: list[str] = []
    for _ in range(5):
        redis_server.client.config_set("appendfsync", "always")  # so that a killed Redis loses no write
        for number in range(10):
            key = f"{len(published)}"
            project.app.tasks["applied"].apply_async((key,), task_id=key, countdown=number % 3)
            published.append(key)
            project.app.tasks["limited"].apply_async(task_id=f"limited {key}")
        redis_server.kill()
        time.sleep(0.3)
        redis_server.start()
        assert worker.alive, worker.log[-3000:]

    def done() -> bool:
        project.app.durable.reconcile()
        return all(value == "1" for value in project.client.mget([f"effect:{key}" for key in published]))

    poll_until(done, "each effect", timeout=120, interval=1)
    assert worker.alive
    for word in ("has no attribute 'hostname'", "Unrecoverable error"):
        assert word not in worker.log
    assert worker.log.count("ready.") == 1


# --- A prefix for all keys ---


@pytest.mark.parametrize("transport", ["stock", "atomic"])
def test_with_a_prefix_no_key_of_the_broker_is_without_it(
    new_project: NewProject, redis_server: RedisServer, transport: str
) -> None:
    store = redis_server.url.removesuffix("/0") + "/1"
    project = new_project(
        TASKS,
        {"broker_transport_options": {"global_keyprefix": "mine:"}, "result_backend": store},
        store=store,
        transport=transport,
        unknown_task_patience=1,
        **SHORTER,
    )
    noted: Any = Redis.from_url(store, decode_responses=True)
    worker = project.worker("-c", "2")
    app, client = project.app, project.client

    def ran() -> list[str]:
        return list(noted.lrange("noted:ran", 0, -1))

    app.tasks["rejected"].delay()
    app.tasks["quick"].apply_async(task_id="held", countdown=3)
    app.send_task("of tomorrow")
    client.lpush("mine:celery", "}{", json.dumps(malformed.message(headers={"retries": "many"})))
    app.control.revoke("nobody's")

    def letters() -> list[str]:
        with app.durable.raw_broker() as raw:
            return sorted(letter.reason for letter in app.durable.dead_letters.read(raw))

    reasons = sorted([Reason.REJECTED, Reason.UNKNOWN_TASK, Reason.MALFORMED, Reason.MALFORMED])
    poll_until(lambda: letters() == reasons, "four dead letters")
    if transport == "stock":
        poll_until(lambda: client.hlen("mine:unacked") == 1, "the message to be held")
    else:
        assert client.zcard("mine:celery-durable:delayed:celery") == 1
    worker.kill()
    project.worker("-c", "2", name="second")
    poll_until(lambda: ran() == ["held"], "it to be redelivered")
    assert app.durable.reconcile()["published"] == 0
    assert [key for key in client.scan_iter() if not key.startswith("mine:")] == []
    keys = set(client.scan_iter())
    for name in ("dead-letters", "workers", "revoked"):
        assert f"mine:celery-durable:{name}" in keys
    noted.close()


# --- Topics ---


def test_a_killed_workers_copy_of_a_topic_goes_back_to_its_queue(new_project: NewProject) -> None:
    """A retry also goes to its queue only, and not to all queues that its routing key matches."""
    tasks = (
        TASKS
        + """
from kombu import Exchange, Queue

events = Exchange("events", "topic")
app.conf.task_queues = [Queue("one", events, routing_key="a.#"), Queue("two", events, routing_key="#"), Queue("celery")]


@task(name="by_queue")
def by_queue(self):
    note(f"by_queue {self.request.retries}", self.request.hostname)
    if not self.request.retries and self.request.hostname == "one@test":
        raise self.retry(countdown=0.1)


@task(name="slow_by_queue")
def slow_by_queue(self):
    note("slow", self.request.hostname)
    time.sleep(2 if self.request.hostname == "one@test" else 0)
    note("slow done", self.request.hostname)
"""
    )
    project = new_project(tasks, **SHORTER)
    one = project.worker("-c", "2", "-Q", "one", name="one")
    project.worker("-c", "2", "-Q", "two", name="two")
    send = project.app.send_task
    send("by_queue", queue="one", routing_key="a.b")
    project.wait_noted("by_queue 1", 1)
    send("slow_by_queue", queue="one", routing_key="a.b")
    project.wait_noted("slow", 2)
    one.kill()
    project.worker("-c", "2", "-Q", "one", name="heir")
    project.wait_noted("slow done", 2)
    assert sorted(project.noted("slow done")) == ["heir@test", "two@test"]
    assert sorted(project.noted("by_queue 0")) == ["one@test", "two@test"]
    assert project.noted("by_queue 1") == ["one@test"]


# --- Protections that are switched off ---


def test_without_protections_tasks_of_a_lost_process_and_rejected_messages_are_lost(
    new_project: NewProject,
) -> None:
    project = new_project(TASKS, worker_lost=False, dead_letters=False)
    worker = project.worker("-c", "2")
    project.app.tasks["deadly"].delay()
    project.app.tasks["rejected"].delay()
    worker.wait_for("WorkerLostError")
    poll_until(lambda: not project.client.exists("celery", "unacked"), "nothing to be left")
    assert len(project.noted("deadly")) == 1
    assert not project.client.exists("celery-durable:dead-letters")


def test_without_late_acknowledgements_a_killed_worker_loses_its_tasks(new_project: NewProject) -> None:
    project = new_project(TASKS, acks_late=False)
    worker = project.worker("-c", "1")
    project.stock_app.send_task("long", task_id="a")
    project.stock_app.send_task("plain", task_id="b")
    project.wait_noted("started")
    assert not project.client.exists("unacked"), "acknowledged"
    assert project.client.llen("celery") == 1, "no more messages are taken than there are slots"
    worker.kill()
