"""The document search of the demo: documents, words, the index. It knows no task."""
