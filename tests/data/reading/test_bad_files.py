"""Unreadable files of a folder are reported in one message."""

from pathlib import Path
from typing import Any

import pytest

from wholegpt.data.reading.decoding import ReadingReport
from wholegpt.data.reading.files import MOST_NAMED, read_documents
from wholegpt.errors import DataError
from wholegpt.settings.schema import DataConfig


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_text("good\n")
    (tmp_path / "b.txt").write_bytes("wide".encode("utf-16"))
    (tmp_path / "c.txt").write_bytes(b"good enough, but caf\xe9")
    (tmp_path / "d.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    (tmp_path / "e.txt").write_text("also good\n")
    return tmp_path


def read(folder: Path, **options: Any) -> tuple[list[str], ReadingReport]:
    report = ReadingReport()
    return list(read_documents(folder, DataConfig(**options), report)), report


def test_all_unreadable_files_are_in_one_message(folder: Path) -> None:
    with pytest.raises(DataError) as raised:
        read(folder)
    message = str(raised.value)
    assert message.startswith(f"{folder}: 3 files cannot be read: {folder / 'b.txt'}: starts with")
    for part in (
        "give --encoding utf-16",
        f"{folder / 'c.txt'}: byte 20 (0xe9)",
        f"{folder / 'd.jsonl'}: line 2",
    ):
        assert part in message
    assert "\n" not in message and "e.txt" not in message


def test_single_unreadable_file_has_its_own_message(folder: Path) -> None:
    for name in ("b.txt", "d.jsonl"):
        (folder / name).unlink()
    with pytest.raises(DataError) as raised:
        read(folder)
    assert str(raised.value).startswith(f"{folder / 'c.txt'}: byte 20 (0xe9)")


ADVICE = "besides UTF-8, a folder can have only one encoding"


def test_folder_with_several_encodings(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "b.txt").write_text("one")
    with pytest.raises(DataError) as raised:
        read(tmp_path)
    assert ADVICE not in str(raised.value), "--encoding latin-1 reads both files"
    (tmp_path / "c.txt").write_text("one", encoding="utf-16")
    for encoding in ("utf-8", "latin-1", "utf-16"):
        with pytest.raises(DataError, match=ADVICE):
            read(tmp_path, encoding=encoding)


def test_many_unreadable_files_are_counted(folder: Path) -> None:
    for number in range(MOST_NAMED + 4):
        (folder / f"z{number:02}.txt").write_bytes(b"\xe9")
    with pytest.raises(DataError, match=f"{MOST_NAMED + 7} files cannot be read: .*; and 7 more"):
        read(folder)


def test_skipped_files_are_listed(folder: Path) -> None:
    documents, report = read(folder, on_bad_text="skip", on_bad_line="skip")
    assert documents == ["good\n", "fine", "also good\n"]
    assert report.named["that are not utf-8 text"] == ["b.txt"]
    with pytest.raises(DataError, match=r"d\.jsonl: line 2"):
        read(folder, on_bad_text="skip")
