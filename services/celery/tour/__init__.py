"""The guided tour: every Celery concept as a lesson that runs on the live stack and checks its own results."""
