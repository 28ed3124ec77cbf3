"""Which files are documents: anything else in a folder is reported, and nothing in it is fatal."""

import os
from pathlib import Path

import pytest

from search.corpus import Reason, UnusableError, list_files, read_document

LIMIT = 100


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    (folder / "sub").mkdir(parents=True)
    (folder / "good.txt").write_text("some words")
    (folder / "sub" / "good.txt").write_text("x" * LIMIT)
    return folder


def test_a_folder_and_its_subfolders_are_listed_by_name(folder: Path) -> None:
    files, unusable = list_files(folder, LIMIT)
    assert [(file.name, file.size) for file in files] == [("good.txt", 10), ("sub/good.txt", LIMIT)]
    assert unusable == []


def test_what_is_no_document_is_reported_when_listed(folder: Path) -> None:
    (folder / "huge.txt").write_text("x" * (LIMIT + 1))
    (folder / "link.txt").symlink_to(folder / "good.txt")
    (folder / "loop").symlink_to("loop")
    (folder / "sub" / "up").symlink_to(folder, target_is_directory=True)
    (folder / "dangling").symlink_to("nothing")
    os.mkfifo(folder / "pipe")
    (folder / os.fsdecode(b"bad-\xff.txt")).write_text("words")
    files, unusable = list_files(folder, LIMIT)
    assert [file.name for file in files] == ["good.txt", "sub/good.txt"]
    assert {error.name: error.reason for error in unusable} == {
        "huge.txt": Reason.TOO_LARGE,
        "link.txt": Reason.SYMLINK,
        "loop": Reason.SYMLINK,
        "sub/up": Reason.SYMLINK,
        "dangling": Reason.SYMLINK,
        "pipe": Reason.NOT_A_FILE,
        r"bad-\udcff.txt": Reason.BAD_NAME,
    }


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", Reason.EMPTY), (b"caf\xe9", Reason.NOT_UTF8), (b"x" * (LIMIT + 1), Reason.TOO_LARGE)],
)
def test_unfit_content(folder: Path, content: bytes, reason: Reason) -> None:
    (folder / "odd").write_bytes(content)
    assert reason_of(folder, "odd") == reason


def test_what_changed_since_the_listing(folder: Path) -> None:
    """A pipe instead of a file must not block the reader, and a link must not lead out of the folder."""
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to(folder / "good.txt")
    assert reason_of(folder, "pipe") == Reason.NOT_A_FILE
    assert reason_of(folder, "link") == Reason.SYMLINK
    assert reason_of(folder, "sub") == Reason.NOT_A_FILE
    assert reason_of(folder, "gone") == Reason.VANISHED
    assert reason_of(folder, "good.txt/inside") == Reason.VANISHED


def test_an_unreadable_file_and_an_unreadable_subfolder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read everything, so the operating system's refusal is simulated."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    real = os.scandir
    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "scandir", lambda path: refuse() if Path(path).name == "sub" else real(path))
    assert reason_of(folder, "good.txt") == Reason.UNREADABLE
    files, unusable = list_files(folder, LIMIT)
    assert [file.name for file in files] == ["good.txt"]
    assert [(error.name, error.reason) for error in unusable] == [("sub", Reason.UNREADABLE)]


def test_a_folder_that_is_not_there_is_an_error_not_an_empty_corpus(tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError, match=r"CORPUS_DIR: .*missing is not a folder; set it"):
        list_files(tmp_path / "missing", LIMIT)


def reason_of(folder: Path, name: str) -> Reason:
    with pytest.raises(UnusableError) as caught:
        read_document(folder, name, LIMIT)
    return caught.value.reason
