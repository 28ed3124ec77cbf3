"""Every time constant of delivery, in seconds, in one place.

They depend on one another: `tests/unit/test_timing.py` checks the inequalities. Change one, run `make test-unit`.
"""

# A task: soft limit raises SoftTimeLimitExceeded inside it, hard limit kills its child process.
SOFT_TIME_LIMIT = 50
HARD_TIME_LIMIT = 60

# The largest countdown, ETA or retry backoff. A worker holds such a task unacknowledged until it is due.
MAX_DELAY = 60
MIN_RETRY_DELAY = 1  # longer than storing a result takes

# Stock Redis transport: an unacknowledged message goes back to its queue after this, running or not. A task that runs
# longer runs twice, so it must exceed the hard limit and the largest delay (kombu's default is an hour of waiting).
VISIBILITY_TIMEOUT = 90
RESTORE_INTERVAL = 1  # how often workers look for messages past it; kombu's default is about 100 s
# Who looks holds a mutex: a worker that hangs or dies with it keeps the others from looking for so long. Two that look
# at once do no harm (WATCH). With kombu's default of 300 s the row worker-hung of tests/faults takes 5 minutes.
RESTORE_MUTEX_EXPIRE = 3

# Stopping a worker: running tasks get this long to finish, then they go back to the queue unharmed.
SOFT_SHUTDOWN = 6
STOP_GRACE_PERIOD = 20  # compose.yaml's stop_grace_period of the workers; SIGKILL follows

# Liveness of connections to Redis, and of clients as seen by Redis (tcp-keepalive in redis.conf).
HEALTH_CHECK_INTERVAL = 10

# A publisher must not hang on a frozen Redis. Never on a worker's consuming connection: it waits in BRPOP by design,
# and a time-out there leaks prefetch slots until the worker is deaf.
PUBLISH_CONNECT_TIMEOUT = 2
PUBLISH_SOCKET_TIMEOUT = 3

# Results are for whoever waits for them; nobody waits longer.
RESULT_TTL = 3600

# The outbox: a unit that has not ended this long after its publish or its last start is published again, unless its
# queue has not come to it yet. Longer than a killed worker's message takes to come back.
OUTBOX_BOUND = 95
OUTBOX_RECHECK = 15  # how soon one that waits in its queue is looked at again
OUTBOX_INTERVAL = 10  # how often beat has it looked at

# A message of a task that no worker knows goes back to its queue for so long (a deploy?), then it is a dead letter.
UNKNOWN_TASK_PATIENCE = 120
UNKNOWN_TASK_DELAY = 5

# Liveness of our own processes: a loop that still turns touches its heartbeat file, a worker renews its entry in Redis.
HEARTBEAT_INTERVAL = 2
REGISTRY_INTERVAL = 5
BEAT_MAX_LOOP = 5

# A worker that hangs or takes no messages ends itself. Longer than a soft shutdown, a slow Redis, a full queue's start.
WATCHDOG_INTERVAL = 2
HUNG_AFTER = 60
DEAF_AFTER = 30
