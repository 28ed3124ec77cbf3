"""Beat."""

import json
from collections import Counter

from celery.schedules import crontab

from celery_durable import schedules as clock
from tasks import advanced
from tasks.notes import key
from tour import schedules
from tour.events import Event
from tour.evidence import Evidence, Seen, at_least, between, both
from tour.lesson import Concept
from tour.tour import Tour

CONCEPT = Concept(
    "Beat",
    "beat",
    "Beat sends messages by a schedule; it runs no tasks, and does not know their results.",
)

entries = CONCEPT.lesson("beat-entries", "What can be scheduled, and how")


@entries.step(
    "Interval, crontab, a crontab in another time zone, solar",
    shows=(schedules.kinds,),
    covers=("interval", "crontab", "timezone-aware entries", "solar entries", "what a missed tick does"),
    expect={"sent at once": ["2", "4", "6", "8"], "messages after three days off": 4},
    learn="After it was off, beat sends a missed entry once, not once for each due time that it missed.",
)
def kinds(tour: Tour) -> Evidence:
    queue = tour.queue()
    tour.beat("kinds", queue, "kinds")
    messages = tour.broker.take(queue, 4)
    return {
        "sent at once": messages.map(lambda found: sorted(str(sum(message.args)) for message in found)),
        "messages after three days off": messages.map(len),
    }


@entries.step(
    "A crontab in the time zone of Tokyo",
    shows=(clock.zoned,),
    covers=("timezone-aware entries",),
    expect={"hours between them": 9.0},
    learn="Celery's crontab uses the app's time zone, here UTC; for another zone use a schedule with its own.",
)
def time_zone(tour: Tour) -> Evidence:
    here, there = tour.due(crontab(hour=9, minute=0)), tour.due(clock.zoned("Asia/Tokyo", hour=9, minute=0))
    return {"hours between them": both(here, there).map(lambda times: round((times[0] - times[1]) / 3600 % 24, 2))}


@entries.step(
    "Arguments, queue, priority and expiry of an entry",
    shows=(schedules.options,),
    covers=("arguments of an entry", "queue of an entry", "priority of an entry", "expiry of an entry"),
    expect={"arguments": {"name": "beat"}, "priority": 2, "expires after": between(0, 30, "s")},
    learn="Let each entry expire before it is due again, so that messages do not accumulate while no worker runs.",
)
def options(tour: Tour) -> Evidence:
    queue = tour.queue()
    tour.beat("options", queue, "options")
    message = tour.broker.take(queue, 1).map(lambda found: found[0])
    return {
        "arguments": message.map(lambda m: m.kwargs),
        "priority": message.map(lambda m: m.priority),
        "expires after": message.map(lambda m: tour.seconds_until(m.headers["expires"])),
    }


restart = CONCEPT.lesson("beat-restart", "A schedule that survives a restart, and two beats")


@restart.step(
    "The schedule file records what was sent",
    shows=(schedules.daily_and_ticks,),
    covers=("persistent schedule over a restart",),
    expect={
        "daily entry, first start": 1,
        "after a restart": 0,
        "ticks meanwhile": at_least(2),
        "after losing the file": 1,
    },
    learn="Keep beat's schedule file on a volume: without it beat sends entries again, or starts their intervals anew.",
)
def persistent(tour: Tour) -> Evidence:
    def sent(ticks: int) -> Seen[list[str]]:
        queue = tour.queue()
        beat = tour.beat("daily_and_ticks", queue, "kept" if ticks > 1 else "lost")
        tour.broker.waiting(queue, ticks)
        beat.stop()
        beat.exit_code()
        return tour.broker.take(queue).map(lambda found: [message.headers["task"] for message in found])

    first, second, third = sent(2), sent(3), sent(1)
    return {
        "daily entry, first start": first.map(lambda tasks: tasks.count("daily")),
        "after a restart": second.map(lambda tasks: tasks.count("daily")),
        "ticks meanwhile": second.map(lambda tasks: tasks.count("awake")),
        "after losing the file": third.map(lambda tasks: tasks.count("daily")),
    }


@restart.step(
    "Two beats send twice; the task lets only the first run",
    shows=(advanced.tick,),
    covers=("two beats",),
    expect={"beats that sent": 2, "messages": at_least(2), "runs of one tick": 1},
    learn="Run one beat; but two may run for a while during a deployment, so use the due time as the key of "
    "the effect.",
)
def two(tour: Tour) -> Evidence:
    worker = tour.worker("--concurrency=2")
    tour.beat("ticks", worker.queue, "first")
    tour.beat("ticks", worker.queue, "second")

    def by_both() -> list[Seen[list[Event]]]:
        sent = tour.events.wait("sent", name="tasks.advanced.tick")
        return [sent] if len({event.worker for event in sent.value}) == 2 else []

    (sent,) = tour.until(by_both, "both beats to send")
    return {
        "beats that sent": sent.map(lambda events: len({event.worker for event in events})),
        "messages": sent.map(len),
        "runs of one tick": tour.noted(worker.queue, 3).map(lambda due: max(Counter(due).values())),
    }


pings = CONCEPT.lesson("beat-ping", "Is beat alive?")


@pings.step(
    "Since Celery 5.7 beat can answer a ping",
    covers=("ping of beat",),
    expect={"answer": {"ok": "pong"}},
    learn="With `beat_enable_remote_control` beat answers `celery inspect ping`; here its last tick is also a metric.",
)
def ping(tour: Tour) -> Evidence:
    beat = tour.beat("ticks", tour.queue(), "ping", settings={"beat_enable_remote_control": True})
    return {"answer": tour.inspect("ping", beat.name)}


changing = CONCEPT.lesson("beat-changes", "Changing the schedule while beat runs")


@changing.step(
    "A scheduler that reads its entries from Redis before each tick",
    shows=(schedules.Stored,),
    covers=("changing a schedule while it runs",),
    expect={"sent at first": ["first"], "after the change": ["second"]},
    learn="Celery's own scheduler reads `beat_schedule` once: use one with a store, such as django-celery-beat's, or "
    "write one.",
)
def change(tour: Tour) -> Evidence:
    queue, name = tour.queue(), tour.name("schedule")
    entries = [json.dumps({"task": task, "seconds": 1, "queue": queue}) for task in ("first", "second")]
    tour.redis("HSET", key(name), "first", entries[0])
    stored = {"beat_scheduler": "tour.schedules:Stored", "beat_max_loop_interval": 1, "schedule_key": key(name)}
    tour.beat("empty", queue, "stored", settings=stored)
    before = tour.broker.take(queue, 2)
    tour.redis("HDEL", key(name), "first")
    tour.redis("HSET", key(name), "second", entries[1])
    tour.broker.take_until(queue, "second")
    after = tour.broker.take(queue, 2)
    return {
        "sent at first": before.map(lambda found: sorted({message.headers["task"] for message in found})),
        "after the change": after.map(lambda found: sorted({message.headers["task"] for message in found})),
    }
