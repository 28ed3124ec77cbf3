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

# Liveness of our own processes: a loop that still turns touches its heartbeat file, a worker renews its entry in Redis.
HEARTBEAT_INTERVAL = 2
REGISTRY_INTERVAL = 5
BEAT_MAX_LOOP = 5
