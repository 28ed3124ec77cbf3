"""Flower's settings, read by `celery -A celery_app flower` from its working directory."""

from pathlib import Path

# Without a login Flower's API refuses requests, but its pages can still shut workers down.
basic_auth = ["admin:" + Path("/run/secrets/flower_password").read_text().strip()]
# Tasks kept in memory. The default is 100,000; the container has 256 MB.
max_tasks = 5000
