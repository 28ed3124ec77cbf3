"""The inverted index in Redis, and the runs that build it. tasks/search.py distributes a run over tasks.

A document is a name with a content. Its counts never change, so every generation of the index shares its postings, and
unchanged documents are not counted again. A generation is a list of documents. Readers use the one that `index:current`
names; completing a run sets that key in one step. A run lists the folder, splits the list into chunks and becomes the
generation of the same id.

    index:current                  id of the current generation
    index:generations              set of the completed generations that may still have readers
    index:generation:<run>         hash: documents, words, terms, completed (epoch s)
    index:generation:<run>:names   hash: document number -> name
    index:term:<word>              sorted set: document number by its count of the word
    index:document:<sha256>        done marker of a document: its number and count of words
    index:documents                hash: document number -> sha256
    index:words:<number>           the distinct words of a document, separated by spaces
    index:last_number              the last document number used; small numbers keep the sorted sets compact
    run:active, run:last           ids of runs
    run:<run>                      hash: state, started, progress, sent (epoch s), chunks, unusable, report
    run:<run>:chunks               hash: chunk -> JSON list of file names
    run:<run>:chunk:<chunk>        done marker of a chunk, with its result
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from redis import Redis
from redis.client import Pipeline

from celery_durable.once import atomically, once
from search.corpus import File, UnusableError, read_document
from search.count import Totals, checksum
from search.words import MAX_WORD_LENGTH, count_words, words

T = TypeVar("T")

# A chunk must stay far below the soft time limit. Measured on one core: 0.5 s for 25 modules of the standard library,
# 3 s for a MiB of distinct words, which is the worst case.
CHUNK_FILES = 25
CHUNK_BYTES = 1_048_576

RUN_DEADLINE = 100  # s without progress before missing chunks are sent again; longer than the broker's redelivery
RUN_ABANDONED_AFTER = 900  # s without progress, even if sent again: then another run may start
RUN_TTL = 86_400
READER_GRACE = 120  # s that a replaced generation is kept for its readers
MAX_NAMED = 20  # files that cannot be indexed and are named; the others are only counted
BATCH = 500  # keys per round trip

CURRENT, GENERATIONS = "index:current", "index:generations"
DOCUMENTS, LAST_NUMBER = "index:documents", "index:last_number"
ACTIVE, LAST = "run:active", "run:last"


def _generation(run: str) -> str:
    return f"index:generation:{run}"


def _names(run: str) -> str:
    return f"index:generation:{run}:names"


def _chunks(run: str) -> str:
    return f"run:{run}:chunks"


def _done(run: str, chunk: int) -> str:
    return f"run:{run}:chunk:{chunk}"


def _batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]


def summarise(unusable: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """A report of limited size: counts by reason, and the first names."""
    files = sorted(unusable)
    return {
        "count": len(files),
        "reasons": dict(Counter(reason for _, reason in files)),
        "first": [{"name": name, "reason": reason} for name, reason in files[:MAX_NAMED]],
    }


# --- Documents ---


def add_document(client: Redis, name: str, text: str) -> tuple[int, int, bool]:
    """Add a document to the postings, once. Returns its number, its count of words, whether it is new."""
    digest = hashlib.sha256(name.encode() + b"\0" + text.encode()).hexdigest()

    def effect(pipe: Pipeline) -> dict[str, int]:
        counts = count_words(text)
        number = client.incr(LAST_NUMBER)
        for word, count in counts.items():
            pipe.zadd(f"index:term:{word}", {number: count})
        pipe.set(f"index:words:{number}", " ".join(counts))
        pipe.hset(DOCUMENTS, str(number), digest)
        return {"number": number, "words": counts.total()}

    document, first = once(client, f"index:document:{digest}", effect)
    return document["number"], document["words"], first


def remove_unused_documents(client: Redis, limit: int) -> int:
    """Remove the postings of at most `limit` documents that no generation lists. Returns how many were removed.

    Nothing is removed while a run is active, or after another was completed: they may list a document again.
    """
    current, used = client.get(CURRENT), set[str]()
    for run in client.smembers(GENERATIONS):
        numbers = client.hkeys(_names(run))
        used.update(numbers)
        if not numbers and run != current:
            client.srem(GENERATIONS, run)
    unused = [(number, digest) for number, digest in client.hgetall(DOCUMENTS).items() if number not in used]

    def remove(pipe: Pipeline, number: str, digest: str) -> bool:
        if pipe.get(ACTIVE) or pipe.get(CURRENT) != current:
            return False
        found = (pipe.get(f"index:words:{number}") or "").split()
        pipe.multi()
        for word in found:
            pipe.zrem(f"index:term:{word}", number)
        pipe.delete(f"index:words:{number}", f"index:document:{digest}")
        pipe.hdel(DOCUMENTS, number)
        return True

    return sum(
        atomically(client, partial(remove, number=number, digest=digest), ACTIVE, CURRENT)
        for number, digest in unused[:limit]
    )


# --- Runs ---


def cut_into_chunks(files: Iterable[File]) -> list[list[str]]:
    """File names in chunks of at most CHUNK_FILES and CHUNK_BYTES (one larger file is a chunk of its own)."""
    chunks: list[list[str]] = []
    size = 0
    for file in files:
        if not chunks or len(chunks[-1]) == CHUNK_FILES or size + file.size > CHUNK_BYTES:
            chunks.append([])
            size = 0
        chunks[-1].append(file.name)
        size += file.size
    return chunks


def start(client: Redis, run: str, files: Iterable[File], unusable: Iterable[UnusableError]) -> dict[str, str]:
    """Make `run` the active run, unless another is active. Returns {"run": the active run, "state": …}.

    Starting the same run again (its message was delivered twice) keeps the first listing.
    """
    chunks = cut_into_chunks(files)
    report = summarise((error.name, error.reason) for error in unusable)

    def step(pipe: Pipeline) -> dict[str, str]:
        if state := pipe.hget(f"run:{run}", "state"):
            return {"run": run, "state": state}
        active = pipe.get(ACTIVE)
        if active and not _abandoned(pipe.hgetall(f"run:{active}")):
            return {"run": active, "state": "active already"}
        now = time.time()
        pipe.multi()
        pipe.set(ACTIVE, run)
        pipe.set(LAST, run)
        fields = {"state": "counting", "started": now, "progress": now, "sent": now, "chunks": len(chunks)}
        pipe.hset(f"run:{run}", mapping={**fields, "unusable": json.dumps(report)})
        pipe.expire(f"run:{run}", RUN_TTL)
        if chunks:
            pipe.hset(_chunks(run), mapping={str(number): json.dumps(names) for number, names in enumerate(chunks)})
            pipe.expire(_chunks(run), RUN_TTL)
        return {"run": run, "state": "counting"}

    return atomically(client, step, ACTIVE, f"run:{run}")


def _abandoned(run: dict[str, str]) -> bool:
    return run.get("state") != "counting" or time.time() - float(run["progress"]) > RUN_ABANDONED_AFTER


def count_chunk(client: Redis, run: str, chunk: int, folder: Path, max_bytes: int) -> dict[str, Any]:
    """Count one chunk of a run's documents and list them in its generation. A second call changes nothing.

    Returns {"state": "counted", "documents", "new", "words", "unusable"}, or only the state of a run that is over.
    """
    done = client.get(_done(run, chunk))
    if done is not None:
        return dict(json.loads(done))
    names = client.hget(_chunks(run), str(chunk))
    if client.get(ACTIVE) != run or names is None:
        return {"state": run_status(client, run)["state"]}
    numbers: dict[str, str] = {}
    unusable: list[tuple[str, str]] = []
    new = total = 0
    for name in json.loads(names):
        try:
            text = read_document(folder, name, max_bytes)
        except UnusableError as error:
            unusable.append((error.name, error.reason))
            continue
        number, count, first = add_document(client, name, text)
        numbers[str(number)] = name
        new += first
        total += count

    def effect(pipe: Pipeline) -> dict[str, Any]:
        if numbers:
            pipe.hset(_names(run), mapping=numbers)
            pipe.expire(_names(run), RUN_TTL)
        pipe.hset(f"run:{run}", "progress", time.time())
        pipe.expire(f"run:{run}", RUN_TTL)
        return {"state": "counted", "documents": len(numbers), "new": new, "words": total, "unusable": unusable}

    return dict(once(client, _done(run, chunk), effect, ttl=RUN_TTL).result)


def missing_chunks(client: Redis, run: str) -> list[int]:
    """The chunks of a run that are not counted yet."""
    chunks = range(int(client.hget(f"run:{run}", "chunks") or 0))
    done = [marker for batch in _batches(chunks) for marker in client.mget([_done(run, chunk) for chunk in batch])]
    return [chunk for chunk, marker in zip(chunks, done, strict=True) if marker is None]


def complete(client: Redis, run: str) -> dict[str, Any]:
    """Make the run's generation the current one, if it is the active run and all chunks are counted.

    Returns its report, the same at each call; without the totals while chunks are missing.
    """
    status = run_status(client, run)
    if status["state"] != "counting" or status["missing"]:
        return status
    chunks = [json.loads(client.get(_done(run, chunk)) or "{}") for chunk in range(status["chunks"])]
    documents, total = sum(chunk["documents"] for chunk in chunks), sum(chunk["words"] for chunk in chunks)
    terms = len(_terms(client, client.hkeys(_names(run))))
    listed = json.loads(client.hget(f"run:{run}", "unusable") or "{}")
    read = summarise((name, reason) for chunk in chunks for name, reason in chunk["unusable"])
    report = {
        "documents": documents,
        "new": sum(chunk["new"] for chunk in chunks),
        "words": total,
        "terms": terms,
        "unusable": {
            "count": listed["count"] + read["count"],
            "reasons": dict(Counter(listed["reasons"]) + Counter(read["reasons"])),
            "first": (listed["first"] + read["first"])[:MAX_NAMED],
        },
    }

    def swap(pipe: Pipeline) -> None:
        if pipe.get(ACTIVE) != run:
            return
        replaced = pipe.get(CURRENT)
        now = time.time()
        pipe.multi()
        totals = {"documents": documents, "words": total, "terms": terms, "completed": now}
        pipe.hset(_generation(run), mapping=totals)
        pipe.persist(_names(run))
        pipe.sadd(GENERATIONS, run)
        pipe.set(CURRENT, run)
        if replaced:
            pipe.expire(_generation(replaced), READER_GRACE)
            pipe.expire(_names(replaced), READER_GRACE)
        pipe.hset(f"run:{run}", mapping={"state": "complete", "finished": now, "report": json.dumps(report)})
        pipe.delete(ACTIVE)

    atomically(client, swap, ACTIVE)
    return run_status(client, run)


def run_status(client: Redis, run: str) -> dict[str, Any]:
    """{"run", "state", "chunks", "missing"}, with times (epoch s), and the report's fields once it is complete."""
    fields = client.hgetall(f"run:{run}")
    if not fields:
        return {"run": run, "state": "expired", "chunks": 0, "missing": 0}
    state = fields["state"]
    if state == "counting" and client.get(ACTIVE) != run:
        state = "superseded"
    return {
        "run": run,
        "state": state,
        "chunks": int(fields["chunks"]),
        "missing": 0 if state == "complete" else len(missing_chunks(client, run)),
        **{name: float(fields[name]) for name in ("started", "finished") if name in fields},
        **json.loads(fields.get("report", "{}")),
    }


def overdue(client: Redis, run: str) -> list[int]:
    """The missing chunks of a run that made no progress and was not sent again for RUN_DEADLINE; marks them as sent."""

    def step(pipe: Pipeline) -> bool:
        fields = pipe.hgetall(f"run:{run}")
        if not fields or time.time() - max(float(fields["progress"]), float(fields.get("sent", 0))) < RUN_DEADLINE:
            return False
        pipe.multi()
        pipe.hset(f"run:{run}", "sent", time.time())
        return True

    return missing_chunks(client, run) if atomically(client, step, f"run:{run}") else []


def abandon(client: Redis, run: str) -> bool:
    """Abort a run without progress for RUN_ABANDONED_AFTER. Returns whether it was aborted."""

    def step(pipe: Pipeline) -> bool:
        if pipe.get(ACTIVE) != run or not _abandoned(pipe.hgetall(f"run:{run}")):
            return False
        pipe.multi()
        pipe.hset(f"run:{run}", "state", "abandoned")
        pipe.expire(f"run:{run}", RUN_TTL)
        pipe.delete(ACTIVE)
        return True

    return atomically(client, step, ACTIVE, f"run:{run}")


# --- Reading ---


def one_word(term: object) -> str:
    """The word of a search term. Raises ValueError or TypeError with a message for the caller."""
    if not isinstance(term, str):
        raise TypeError(f"term: a search takes one word, got {type(term).__name__}")
    if len(term) > MAX_WORD_LENGTH:
        raise ValueError(f"term: {len(term)} characters; the limit is {MAX_WORD_LENGTH}")
    found = words(term)
    if len(found) != 1:
        raise ValueError(f"term: a search takes one word (letters, digits, _), got {term!r}")
    return found[0]


def search(client: Redis, term: str, limit: int) -> dict[str, Any]:
    """The documents with most occurrences of a word, best first.

    {"term", "generation" (None before the first is complete), "documents" (how many have it), "occurrences",
    "best": [{"name", "count"}]}.
    """
    word, run = one_word(term), client.get(CURRENT)
    postings = client.zrange(f"index:term:{word}", 0, -1, withscores=True) if run else []
    names = client.hmget(_names(run), [number for number, _ in postings]) if postings else []
    found = [(int(count), name) for name, (_, count) in zip(names, postings, strict=True) if name is not None]
    found.sort(key=lambda item: (-item[0], item[1]))
    return {
        "term": word,
        "generation": run,
        "documents": len(found),
        "occurrences": sum(count for count, _ in found),
        "best": [{"name": name, "count": count} for count, name in found[:limit]],
    }


def stats(client: Redis) -> dict[str, Any]:
    """Totals of the current index and the state of the last run.

    {"generation", "documents", "words", "terms", "completed" (epoch s), "run": see run_status, or None}.
    """
    run, last = client.get(CURRENT), client.get(LAST)
    totals = client.hgetall(_generation(run)) if run else {}
    return {
        "generation": run,
        **{name: int(totals.get(name, 0)) for name in ("documents", "words", "terms")},
        "completed": float(totals["completed"]) if "completed" in totals else None,
        "run": run_status(client, last) if last else None,
    }


def audit(client: Redis) -> Totals:
    """The totals of the current index, computed from all of its postings."""
    run = client.get(CURRENT)
    names = client.hgetall(_names(run)) if run else {}
    terms = _terms(client, list(names))
    occurrences = 0

    def postings() -> Iterator[tuple[str, str, int]]:
        nonlocal occurrences
        for batch in _batches(sorted(terms)):
            with client.pipeline(transaction=False) as pipe:
                for term in batch:
                    pipe.zrange(f"index:term:{term}", 0, -1, withscores=True)
                for term, found in zip(batch, pipe.execute(), strict=True):
                    for name, count in sorted((names[n], int(count)) for n, count in found if n in names):
                        occurrences += count
                        yield term, name, count

    digest = checksum(postings())
    return Totals(documents=len(names), words=occurrences, terms=len(terms), checksum=digest)


def _terms(client: Redis, numbers: Sequence[str]) -> set[str]:
    """The distinct words of some documents."""
    terms: set[str] = set()
    for batch in _batches(numbers):
        for found in client.mget([f"index:words:{number}" for number in batch]):
            terms.update((found or "").split())
    return terms
