"""What a task can do beyond returning: report its progress while it runs."""

import time
from typing import Any

from celery_app import Task, app
from tasks.basic import MAX_SECONDS, check_number


@app.task(bind=True, ignore_result=False)
def progress(self: Task, steps: int = 10, seconds: float = 5) -> dict[str, Any]:
    """Work in steps, `seconds` in all; the state is PROGRESS with {"done", "steps"} meanwhile."""
    check_number("steps", steps, 1, 100)
    check_number("seconds", seconds, 0, MAX_SECONDS)
    for done in range(steps):
        self.update_state(state="PROGRESS", meta={"done": done, "steps": steps})
        time.sleep(seconds / steps)
    return {"done": steps, "steps": steps}
