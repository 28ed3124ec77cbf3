"""Which files of a folder are documents, and how one is read; shared by indexing and the tests' own count."""

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Reason(StrEnum):
    """Why a file is left out of the index."""

    EMPTY = "empty"
    NOT_UTF8 = "not UTF-8"
    TOO_LARGE = "larger than MAX_DOCUMENT_BYTES"
    SYMLINK = "symbolic link"  # never followed: it may loop, or lead out of the folder
    NOT_A_FILE = "not a regular file"
    UNREADABLE = "unreadable"
    VANISHED = "vanished"
    BAD_NAME = "name is not UTF-8"


class UnusableError(Exception):
    """A file that cannot be indexed; `reason` says why."""

    def __init__(self, name: str, reason: Reason) -> None:
        super().__init__(name, reason)
        self.name = name.encode(errors="backslashreplace").decode()
        self.reason = reason

    @classmethod
    def from_os_error(cls, name: str, error: OSError) -> "UnusableError":
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return cls(name, Reason.VANISHED)
        if isinstance(error, IsADirectoryError):
            return cls(name, Reason.NOT_A_FILE)
        return cls(name, Reason.SYMLINK if error.errno == errno.ELOOP else Reason.UNREADABLE)


@dataclass(frozen=True)
class File:
    """A file that looks like a document: its path below the folder, with slashes, and its size in bytes."""

    name: str
    size: int


def list_files(folder: Path, max_bytes: int) -> tuple[list[File], list[UnusableError]]:
    """The files of a folder and its subfolders that look like documents, and the others, each sorted by name.

    Nothing is opened. Raises NotADirectoryError when there is no such folder, another OSError when it cannot be
    listed: an empty index must not replace a good one because a volume was not mounted.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"CORPUS_DIR: {folder} is not a folder; set it to the folder of documents to index")
    files, unusable = [], []
    for found in _walk(folder, "", max_bytes):
        if isinstance(found, File):
            files.append(found)
        else:
            unusable.append(found)
    return sorted(files, key=lambda file: file.name), sorted(unusable, key=lambda error: error.name)


def _walk(folder: Path, below: str, max_bytes: int) -> Iterator[File | UnusableError]:
    subfolders = [below]
    while subfolders:
        below = subfolders.pop()
        try:
            with os.scandir(folder / below) as entries:
                for entry in entries:
                    name = f"{below}/{entry.name}" if below else entry.name
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except OSError as error:
                        yield UnusableError.from_os_error(name, error)
                        continue
                    if stat.S_ISDIR(status.st_mode):
                        subfolders.append(name)
                    elif reason := _unfit(name, status, max_bytes):
                        yield UnusableError(name, reason)
                    else:
                        yield File(name, status.st_size)
        except OSError as error:
            if not below:
                raise
            yield UnusableError.from_os_error(below, error)


def _unfit(name: str, status: os.stat_result, max_bytes: int) -> Reason | None:
    if stat.S_ISLNK(status.st_mode):
        return Reason.SYMLINK
    if not stat.S_ISREG(status.st_mode):
        return Reason.NOT_A_FILE
    if status.st_size > max_bytes:
        return Reason.TOO_LARGE
    try:
        name.encode()
    except UnicodeEncodeError:
        return Reason.BAD_NAME
    return None


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)  # opening a pipe would block until it has a writer


def read_document(folder: Path, name: str, max_bytes: int) -> str:
    """The text of a document. Raises UnusableError; the file may have changed since it was listed."""
    try:
        with open(folder / name, "rb", opener=_open) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UnusableError(name, Reason.NOT_A_FILE)
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise UnusableError.from_os_error(name, error) from error
    if not content:
        raise UnusableError(name, Reason.EMPTY)
    if len(content) > max_bytes:
        raise UnusableError(name, Reason.TOO_LARGE)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UnusableError(name, Reason.NOT_UTF8) from error
