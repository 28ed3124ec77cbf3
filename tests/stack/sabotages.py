"""Changes of the code that break what a lesson shows: each must make its lesson fail."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sabotage:
    """A change of the code, and the value that its lesson must then see."""

    lesson: str
    finding: str  # empty: the step times out
    file: str
    old: str
    new: str


ADVANCED, PRACTICES, SETTINGS = "tasks/advanced.py", "tour/tasks/practices.py", "settings.py"

# One per lesson, because a failed step ends its lesson; all run on one stack.
SABOTAGES = (
    Sabotage("routes", "search", "queues.py", 'tasks=("tasks.search.search", ', "tasks=("),
    Sabotage("priorities", "in the queue, by priority", "queues.py", "DEFAULT_PRIORITY = 5", "DEFAULT_PRIORITY = 0"),
    Sabotage(
        "no-consumer",
        "the caller got",
        SETTINGS,
        '"task_create_missing_queues": False',
        '"task_create_missing_queues": True',
    ),
    Sabotage("six-states", "states", SETTINGS, '"task_track_started": True', '"task_track_started": False'),
    Sabotage(
        "no-pickle",
        "the worker's log",
        SETTINGS,
        '"accept_content": ["json"]',
        '"accept_content": ["json", "pickle"]',
    ),
    Sabotage("keeping-results", "name", SETTINGS, '"result_extended": True', '"result_extended": False'),
    Sabotage("logging", "state", "tasks/basic.py", "@app.task(ignore_result=True)", "@app.task(ignore_result=False)"),
    Sabotage("arguments", "error", "tasks/basic.py", "@checked\ndef add(", "def add("),
    Sabotage(
        "beat-entries",
        "hours between them",
        "tour/lessons/beat.py",
        'clock.zoned("Asia/Tokyo", hour=9, minute=0)',
        "crontab(hour=9, minute=0)",
    ),
    Sabotage(
        "beat-restart",
        "runs of one tick",
        ADVANCED,
        "base=PeriodicTask, bind=True, ignore_result=False)\n@checked\ndef tick(self: PeriodicTask",
        "bind=True, ignore_result=False)\n@checked\ndef tick(self: Task",
    ),
    Sabotage("chords", "result", "tasks/workflows.py", "return sum(numbers)", "return sum(numbers[1:])"),
    Sabotage(
        "stamping",
        "stamp of the first",
        "tasks/workflows.py",
        'return {"order": self.order, "stamped_headers": ["order"]}',
        "return {}",
    ),
    Sabotage(
        "replace",
        "",
        "tasks/workflows.py",
        "raise self.replace(chain(power.s(x, exponent - 1), times.s(x)))",
        "return x**exponent",
    ),
    Sabotage("autoretry", "", ADVANCED, "    autoretry_for=(AwayError,),\n    dont_autoretry_for=(GoneError,),\n", ""),
    Sabotage(
        "manual-retry",
        "what happened",
        ADVANCED,
        "bind=True, ignore_result=False, max_retries=1",
        "bind=True, ignore_result=False, max_retries=2",
    ),
    Sabotage("failure-hooks", "noted by on_failure", ADVANCED, 'f"on_failure {type(exc).__name__}"', '"nothing"'),
    Sabotage(
        "acks-late",
        "late: runs",
        ADVANCED,
        "acks_late=True, retry_on_worker_lost=True, default_retry_delay=1)\n@checked\ndef die_acked_late",
        "acks_late=False, retry_on_worker_lost=False)\n@checked\ndef die_acked_late",
    ),
    Sabotage("time-limits", "result", ADVANCED, "soft_time_limit=1, time_limit=3", "soft_time_limit=20, time_limit=30"),
    Sabotage("expires-rates", "five tasks at 2/s take", ADVANCED, ', rate_limit="2/s"', ""),
    Sabotage(
        "idempotency",
        "deposit of 100, with its marker",
        PRACTICES,
        "durable.once(key(self.request.id), effect, ttl=KEPT_FOR)",
        "durable.store.incrby(key(account), amount)",
    ),
    Sabotage(
        "atomicity",
        "in one transaction, left in total",
        PRACTICES,
        "pipeline(transaction=True) as pipe:\n        pipe.decrby",
        "pipeline(transaction=True) as pipe:\n        durable.store.decrby",
    ),
    Sabotage("sparing-results", "stored for its key", PRACTICES, "    return name\n", '    return "x" * size\n'),
    Sabotage("time-outs", "with: ends as", PRACTICES, "ours.settimeout(timeout)", "ours.settimeout(None)"),
    Sabotage(
        "retry-backoff",
        "after 3 s and 6 s",
        PRACTICES,
        "max_retries=2, retry_backoff=3",
        "max_retries=0, retry_backoff=3",
    ),
    Sabotage("changed-signature", "with a default", PRACTICES, 'language: str = "en"', "language: str"),
    Sabotage("too-early", "written, then published", PRACTICES, "value = durable.store.get(key(name))", "value = None"),
    Sabotage(
        "fork-safety",
        "connections opened after it",
        "tour/tasks/processes.py",
        "@signals.worker_process_init.connect\ndef open_after",
        "@signals.worker_init.connect\ndef open_after",
    ),
    Sabotage(
        "small-tasks",
        "slots that 40 tasks of one use",
        "tour/lessons/practices.py",
        'tour.worker("--concurrency=2"), tour.name("items")',
        'tour.worker("--concurrency=1"), tour.name("items")',
    ),
    Sabotage(
        "recycling",
        "processes for 4 tasks, 2 tasks each",
        "tour/lessons/workers.py",
        "--max-tasks-per-child=2",
        "--max-tasks-per-child=9",
    ),
    Sabotage(
        "getting-results",
        "error at once",
        "tour/lessons/results.py",
        "promise.get(timeout=1)",
        "promise.get(timeout=9)",
    ),
    Sabotage(
        "cost-of-results", "stored, without", "tour/lessons/results.py", "ignore_result=ignore)", "ignore_result=False)"
    ),
    Sabotage("eta", "started after", "tour/lessons/limits.py", "countdown=4", "countdown=1"),
    Sabotage("no-overlap", "with a lock", PRACTICES, "if not lock.acquire():", "if False:"),
    Sabotage(
        "async-code",
        "took less than that",
        PRACTICES,
        "await asyncio.gather(*(fetch(seconds) for _ in range(times)))",
        "[await fetch(seconds) for _ in range(times)]",
    ),
    Sabotage(
        "transactions",
        "by the outbox",
        "tour/tasks/orders.py",
        "promises = [ship.apply_async((path, number)",
        "promises = [ship.apply_async((path, 9)",
    ),
    Sabotage("test-worker", "a set", "tour/tasks/testing.py", "return set(words)", "return list(words)"),
    Sabotage("own-commands", "answers", "tour/tasks/processes.py", "{'on' if on else 'off'}", "off"),
    Sabotage(
        "compression",
        "bytes, compressed to plain",
        "tour/lessons/serialisation.py",
        'queue=queue, compression="gzip"',
        "queue=queue",
    ),
    Sabotage(
        "ids",
        "sent with the customer's id",
        "tour/lessons/serialisation.py",
        '"New Street", "EX"',
        '"Old Street", "EX"',
    ),
    Sabotage(
        "signing",
        "signed with an unknown key",
        "tour/tasks/signing.py",
        '"security_cert_store": f"{folder}/{name}.pem"',
        '"security_cert_store": f"{folder}/*.pem"',
    ),
)
