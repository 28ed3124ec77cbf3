"""A Redis transport that takes and books messages in one step, with leases in place of a visibility timeout, and with
delayed messages in Redis. README.md explains the design."""
