"""A task that knows no app: `shared_task` belongs to whichever app is there, so a library can bring tasks along.

`app.autodiscover_tasks` finds this module by its name (celery_app.py); it stands in no list of imports.
"""

from celery import shared_task

from tasks.arguments import Name, checked


@shared_task(ignore_result=False)
@checked
def shout(word: Name) -> str:
    """The word in capitals."""
    return word.upper()
