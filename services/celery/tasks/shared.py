"""A task without an app: `shared_task` registers it with every app, so that a library can define tasks.

`app.autodiscover_tasks` finds this module by its name (celery_app.py); it is not in the list of imports.
"""

from celery import shared_task

from tasks.arguments import Name, checked


@shared_task(ignore_result=False)
@checked
def shout(word: Name) -> str:
    """The word in capitals."""
    return word.upper()
