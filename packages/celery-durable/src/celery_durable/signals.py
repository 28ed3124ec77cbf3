"""What the library announces. Receivers are connected as to Celery's own signals; the sender is the app.

`metrics` counts by them. A receiver runs where the thing happened: in a publisher, in a worker's main process, in a
pool child or in beat.
"""

from celery.utils.dispatch import Signal

#: A task was written to the outbox. Arguments: task (its name).
outbox_written = Signal(name="outbox_written", providing_args={"task"})

#: The reconciler published an outbox entry again. Arguments: task, queue, age (s since it was published last).
outbox_republished = Signal(name="outbox_republished", providing_args={"task", "queue", "age"})

#: Redis has accepted a message. Arguments: task, queue.
message_published = Signal(name="message_published", providing_args={"task", "queue"})

#: A publish raised. The message may be in its queue all the same. Arguments: task, error.
publish_failed = Signal(name="publish_failed", providing_args={"task", "error"})

#: A message became a dead letter. Arguments: letter (see dead_letters.Letter), error.
message_dead_lettered = Signal(name="message_dead_lettered", providing_args={"letter"})

#: The stream of dead letters was over its bound and lost its oldest. Arguments: reason, task, task_id.
dead_letter_overflowed = Signal(name="dead_letter_overflowed", providing_args={"reason", "task", "task_id"})

#: A task ended from outside its process. Arguments: task, queue, outcome (time_limit, worker_lost, revoked, expired).
request_ended = Signal(name="request_ended", providing_args={"task", "queue", "outcome"})

#: Beat looked at its schedule. Arguments: overdue (s that the longest waiting entry has been due and is not sent).
beat_ticked = Signal(name="beat_ticked", providing_args={"overdue"})

#: Beat sent an entry. Arguments: entry (its name), lateness (s since it was due).
beat_sent = Signal(name="beat_sent", providing_args={"entry", "lateness"})
