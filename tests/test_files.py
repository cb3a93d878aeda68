"""Atomic writes of files and folders."""

from functools import partial
from pathlib import Path

import pytest

from wholegpt.files import write_bytes_atomic, write_folder_atomic


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    write_bytes_atomic(path, b"old")

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(OSError, match="No space"):
        write_bytes_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def put(name: str, folder: Path) -> None:
    (folder / name).write_text(name)


def test_folder_is_written_completely_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "folder"

    def half(target: Path) -> None:
        (target / "first").write_text("1")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder_atomic(path, half)
    assert list(tmp_path.iterdir()) == []
    write_folder_atomic(path, partial(put, "x"))
    write_folder_atomic(path, partial(put, "y"))
    assert [p.name for p in path.iterdir()] == ["y"]
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
