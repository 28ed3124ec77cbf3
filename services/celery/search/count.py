"""A simple count that the index must equal: `python -m search.count [folder]` prints it as JSON.

One process, no Redis, no Celery. It shares with the index only the definitions of a document and a word.
"""

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from search.corpus import UnusableError, list_files, read_document
from search.words import count_words


@dataclass(frozen=True)
class Totals:
    """The figures that must be equal in two counts of the same documents."""

    documents: int
    words: int  # with repetitions
    terms: int  # distinct words
    checksum: str  # of every (term, document, count)


def checksum(postings: Iterable[tuple[str, str, int]]) -> str:
    """SHA-256 of (term, document name, count), which must be sorted."""
    digest = hashlib.sha256()
    for posting in postings:
        digest.update(json.dumps(posting).encode())
    return digest.hexdigest()


def count(folder: Path, max_bytes: int) -> Totals:
    """Count the documents of a folder."""
    counts: dict[str, Counter[str]] = {}
    for file in list_files(folder, max_bytes)[0]:
        try:
            counts[file.name] = count_words(read_document(folder, file.name, max_bytes))
        except UnusableError:
            continue
    postings = sorted((term, name, number) for name, terms in counts.items() for term, number in terms.items())
    return Totals(
        documents=len(counts),
        words=sum(number for _, _, number in postings),
        terms=len({term for term, _, _ in postings}),
        checksum=checksum(postings),
    )


if __name__ == "__main__":
    folder = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("CORPUS_DIR", "/corpus")
    print(json.dumps(asdict(count(Path(folder), int(os.environ.get("MAX_DOCUMENT_BYTES", 1_048_576))))))
