"""The document search of the demo: documents, words, the index. Independent of Celery."""
