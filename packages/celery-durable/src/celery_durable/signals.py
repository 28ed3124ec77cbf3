"""The library's signals. Receivers are connected as for Celery's own signals; the sender is the app.

`metrics` is based on them. A receiver runs in the process where the event occurs: a publisher, a worker's main process,
a pool child or beat.
"""

from celery.utils.dispatch import Signal

#: A task was written to the outbox. Arguments: task (its name).
outbox_written = Signal(name="outbox_written", providing_args={"task"})

#: The reconciler published an outbox entry again. Arguments: task, queue, age (s since it was published last).
outbox_republished = Signal(name="outbox_republished", providing_args={"task", "queue", "age"})

#: Redis has accepted a message. Arguments: task, queue.
message_published = Signal(name="message_published", providing_args={"task", "queue"})

#: A publish raised. The message may still be in its queue. Arguments: task, error.
publish_failed = Signal(name="publish_failed", providing_args={"task", "error"})

#: A message became a dead letter. Arguments: letter (see dead_letters.Letter), error.
message_dead_lettered = Signal(name="message_dead_lettered", providing_args={"letter"})

#: The oldest dead letter was removed because the stream exceeded a limit. Arguments: reason, task, task_id.
dead_letter_overflowed = Signal(name="dead_letter_overflowed", providing_args={"reason", "task", "task_id"})

#: An acknowledgement, a renewal or a return changed nothing: its messages had been redelivered. Arguments: operation
#: (acknowledge, renew, delay, requeue), number (of messages).
operation_fenced = Signal(name="operation_fenced", providing_args={"operation", "number"})

#: A task was ended from outside its process. Arguments: task, queue, outcome (time_limit, worker_lost, revoked,
#: expired).
request_ended = Signal(name="request_ended", providing_args={"task", "queue", "outcome"})

#: Beat checked its schedule. Arguments: overdue (s that the longest waiting entry has been due and unsent).
beat_ticked = Signal(name="beat_ticked", providing_args={"overdue"})

#: Beat sent an entry. Arguments: entry (its name), lateness (s since it was due).
beat_sent = Signal(name="beat_sent", providing_args={"entry", "lateness"})
