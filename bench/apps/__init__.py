"""One module a system: its app, its tasks, and how they are published."""
