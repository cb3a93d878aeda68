"""Writing files so that a crash at any moment leaves either the old content or the new, never half of it.

Everything the project writes to disk goes through these functions, so that one test can make
each of their file-system calls fail in turn.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from wholegpt.errors import WholeGPTError

TEMPORARY_PREFIX, RESUMABLE_PREFIX = ".partial-", ".unfinished-"


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def utf8_name(path: Path) -> str:
    """A file's name without suffixes, with what is not UTF-8 replaced, to name a folder by."""
    return os.fsencode(path.stem or path.resolve().stem).decode("utf-8", "replace").replace("\ufffd", "_")


def sync_file(path: Path) -> None:
    """Force a file's bytes to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Force a folder's entries (creations, renames) to the disk, where the system supports it."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A file that replaces the one at ``path`` when the block ends: temporary name, sync, rename, sync of folder."""
    temporary = path.with_name(TEMPORARY_PREFIX + path.name)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_bytes_atomic(path: Path, content: bytes) -> None:
    """Replace the file at ``path`` by ``content``, whole or not at all."""
    with writing(path) as file:
        file.write(content)


def write_text_atomic(path: Path, content: str) -> None:
    r"""``write_bytes_atomic`` for text, in UTF-8.

    Names of files that are not UTF-8 hold surrogates, which are written as JSON, YAML and Python do: ``\udce9``.
    """
    write_bytes_atomic(path, content.encode("utf-8", errors="backslashreplace"))


def write_json_atomic(path: Path, value: Any) -> None:
    """``write_bytes_atomic`` for JSON, indented, with a final newline."""
    write_text_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_folder_atomic(path: Path, fill: Callable[[Path], None]) -> None:
    """Create the folder ``path`` whole: ``fill`` writes into a temporary sibling, which is synced and renamed.

    A folder already at ``path`` is replaced, and so is one that a link at ``path`` leads to. A failure leaves whatever
    stood there before.
    """
    path = path.resolve() if path.is_symlink() else path
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(TEMPORARY_PREFIX + path.name)
    remove_folder(temporary)
    temporary.mkdir()
    try:
        fill(temporary)
        _sync_tree(temporary)
        remove_folder(path)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(path.parent)


@contextlib.contextmanager
def resumable_folder(path: Path, request: Any) -> Iterator[Path]:
    """A folder to fill in steps that a crash does not undo: what was finished for the same ``request`` is still there.

    It becomes ``path`` when the block ends, whole, replacing what stood there; until then it is a hidden sibling, which
    an error of the user's ends. The block itself says what is finished, by files it writes whole. ``request`` is
    anything that JSON can hold.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    work = path.with_name(RESUMABLE_PREFIX + path.name)
    note = work / "request.json"
    wanted = json.loads(json.dumps(request))
    if not (note.exists() and read_json(note) == wanted):
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        write_json_atomic(note, wanted)
    try:
        yield work
    except WholeGPTError:  # the same call would fail again
        shutil.rmtree(work, ignore_errors=True)
        raise
    _sync_tree(work)
    remove_folder(path)
    work.rename(path)  # with its note, so that a crash before this loses nothing
    sync_folder(path.parent)
    (path / note.name).unlink()


def _sync_tree(path: Path) -> None:
    for folder, _, names in os.walk(path):
        for name in names:
            sync_file(Path(folder) / name)
        sync_folder(Path(folder))


def remove_folder(path: Path) -> None:
    """Delete a folder and what is in it, if it exists, so that a half-deleted one is never taken for whole."""
    if not path.exists():
        return
    if not path.name.startswith(TEMPORARY_PREFIX):
        doomed = path.with_name(TEMPORARY_PREFIX + "deleted-" + path.name)
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)
        path = doomed
    shutil.rmtree(path)


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises ``OSError`` or ``ValueError``."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
