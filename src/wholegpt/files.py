"""Crash-safe writing of files and folders, and locks between processes.

A crash leaves the old content or the new, and two processes never write to one folder at once. Everything the
project writes to disk goes through these functions, so that one test can make each of their file-system calls
fail in turn.

Beside a folder ``NAME`` there may be hidden ones: ``.partial-NAME`` (the new content while it is written, the
old one while it is replaced), ``.unfinished-NAME`` (work that a later call continues) and
``.wholegpt-lock-NAME``.
"""

import contextlib
import filecmp
import hashlib
import itertools
import json
import os
import secrets
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from fnmatch import fnmatchcase
from pathlib import Path, PurePath
from typing import Any, BinaryIO

from wholegpt.errors import RunError, WholeGPTError

TEMPORARY_PREFIX, RESUMABLE_PREFIX = ".partial-", ".unfinished-"
FILE_PREFIX, LOCK_PREFIX = ".wholegpt-partial-", ".wholegpt-lock-"
MARK = "wholegpt.json"
"""A file that marks a hidden folder as created by wholegpt, so that others are never touched."""
LOCK_SECONDS = 0.2
"""Seconds that the holder of a lock may take to record who it is."""


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def utf8_name(path: Path) -> str:
    """Return a file's name without suffixes and with non-UTF-8 bytes replaced, to name a folder."""
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
    """Open a file that replaces the one at ``path`` when the block ends: temporary name, sync, rename, sync
    of folder.
    """
    temporary = path.with_name(FILE_PREFIX + secrets.token_hex(8))
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)
        raise
    sync_folder(path.parent)


def write_bytes_atomic(path: Path, content: bytes) -> None:
    """Replace the file at ``path`` by ``content``, whole or not at all."""
    with writing(path) as file:
        file.write(content)


def write_text_atomic(path: Path, content: str) -> None:
    r"""Write text like ``write_bytes_atomic``, in UTF-8.

    Names of non-UTF-8 files contain surrogates, which are written as escapes as in JSON, YAML and Python:
    ``\udce9``.
    """
    write_bytes_atomic(path, content.encode("utf-8", errors="backslashreplace"))


def write_json_atomic(path: Path, value: Any) -> None:
    """Write indented JSON like ``write_bytes_atomic``, with a final newline."""
    write_text_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Return the value in a JSON file. Raises ``OSError`` or ``ValueError``."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def exists(path: str | Path) -> bool:
    """Return whether a path exists; never raises, even for text that cannot be a path."""
    return os.path.exists(path)  # noqa: PTH110 (which raises)


def is_file(path: str | Path) -> bool:
    """Return whether a path is a file; never raises, even for text that cannot be a path."""
    return os.path.isfile(path)  # noqa: PTH113 (which raises)


def file_inside(folder: Path, name: str) -> Path:
    """Return the path of a file listed in ``folder``. Raises ``ValueError`` if it is outside the folder."""
    path = PurePath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in name or "\\" in name:
        raise ValueError(f"names the file {name!r}, which is not inside {folder}")
    return folder / path


# --- Locks ---------------------------------------------------------------------------------------

_held: ContextVar[frozenset[Path]] = ContextVar("_held", default=frozenset())


class FolderBusyError(RunError):
    """Another process or thread is writing into the folder."""


@contextlib.contextmanager
def lock_folder(path: Path, purpose: str) -> Iterator[Path]:
    """Prevent other processes and threads from writing into the folder ``path`` within the block.

    The lock is the operating system's, which releases it when the process dies. Locking a folder again inside
    the block is allowed. Leftovers of a crash beside the folder are recovered first. Raises
    ``FolderBusyError`` at once, naming the process that holds the lock, and ``RunError`` if the file system
    does not support locks.
    """
    folder = _real(path)
    if folder in _held.get():
        yield path
        return
    from filelock import FileLock, SoftFileLock, Timeout  # slow to import

    if not folder.name:
        raise RunError(f"{path}: is the root of the file system; name another folder")
    if any("\ud800" <= character <= "\udfff" for character in str(path)):
        raise RunError(f"{path}: is not UTF-8, which safetensors requires of names; name another folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, RecursionError) as error:  # pathlib creates parents recursively
        problem = error.strerror if isinstance(error, OSError) else "too many folders in folders"
        raise RunError(
            f"{folder.parent}: {problem}; no folder can be created there, name another folder"
        ) from None
    file = folder.with_name(LOCK_PREFIX + folder.name)
    lock = FileLock(file)
    deadline = time.monotonic() + LOCK_SECONDS
    while not lock.is_locked:
        try:
            with warnings.catch_warnings():
                # Without flock the library falls back to a file that exists while the lock is held.
                warnings.simplefilter("ignore")
                lock.acquire(blocking=False)
        except Timeout:
            holder = _holder(file)
            if not holder and time.monotonic() < deadline:
                time.sleep(LOCK_SECONDS / 20)
                continue
            if not file.exists():
                # It was released just now; or no file can be created, and the library waits for one.
                try:
                    file.touch()
                except OSError:
                    raise RunError(f"{path}: no file can be created beside it; name another folder") from None
                continue
            raise FolderBusyError(
                f"{path}: {holder or 'another process'} is writing into it; wait until it has ended, or name "
                "another folder"
            ) from None
        except OSError as error:
            raise RunError(
                f"{path}: cannot be locked against other processes ({error.strerror or error}); name another "
                "folder, perhaps on another file system"
            ) from None
    previous = _held.set(_held.get() | {folder})
    native = not isinstance(lock, SoftFileLock)  # a soft lock file has content of its own
    try:
        if native:
            started = time.strftime("%Y-%m-%d %H:%M:%S %z")
            record = {"process": os.getpid(), "started": started, "purpose": purpose}
            file.write_text(json.dumps(record), encoding="utf-8")
        recover_folder(folder)
        yield path
    finally:
        _held.reset(previous)
        if native:
            # Delete it while locked: a process that opened the file before finds it unlinked and opens the
            # next one.
            with contextlib.suppress(OSError):
                file.unlink()
        lock.release()


def _holder(lock_file: Path) -> str:
    """Return who holds a lock; empty if it is not recorded yet, or recorded by a dead process."""
    try:
        holder = read_json(lock_file)
        process, purpose, started = holder["process"], holder["purpose"], holder["started"]
        if os.name != "nt" and not _is_alive(process):
            return ""
        return f"process {process} ({purpose}, started {started})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # the process of another user
    return True


@contextlib.contextmanager
def claim_name(wanted: Path, purpose: str) -> Iterator[Path]:
    """Yield ``wanted``, or with the first number from 2 on that makes it new; locked within the block."""
    for number in itertools.count(1):
        name = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        lock = contextlib.ExitStack()
        try:
            if not name.exists():
                lock.enter_context(lock_folder(name, purpose))
        except FolderBusyError:
            continue
        with lock:
            if not name.exists():
                yield name
                return


# --- Folders -------------------------------------------------------------------------------------

Patterns = Sequence[str]
"""Relative paths of files with ``fnmatch``'s wildcards in their parts, such as ``step-*/config.json``."""


def write_folder_atomic(path: Path, fill: Callable[[Path], None], own: Patterns | None = None) -> None:
    """Create the folder ``path`` atomically: ``fill`` writes into a temporary one, which is synced and
    renamed.

    An existing folder at ``path``, or at the target of a link there, is replaced; files in it that do not
    match ``own`` (default: all) are kept. After a failure the old content remains. If another process may
    write to ``path``, the caller must lock it.
    """
    path = _real(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _work_folder(path, f"{TEMPORARY_PREFIX}{path.name}/new") as work:
        new = work / "new"
        new.mkdir()
        fill(new)
        _sync_tree(new)
        _put_in_place(new, path, work / "old", own)


@contextlib.contextmanager
def resumable_folder(path: Path, request: Any, own: Patterns | None = None) -> Iterator[Path]:
    """Yield a folder to fill in steps that survive a crash: finished steps of the same ``request`` are still
    there.

    It becomes ``path`` when the block ends, atomically and replacing existing content like
    ``write_folder_atomic``. Until then it is a hidden sibling, which is deleted after a ``WholeGPTError``.
    The block itself records what is finished, by atomically written files. ``request`` is any JSON value.
    """
    path = _real(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(RESUMABLE_PREFIX + path.name)
    mark = {"request": json.loads(json.dumps(request))}
    if _mark_of(unfinished) != mark:
        _make_hidden(unfinished, mark)
    for partial in unfinished.glob(f"{FILE_PREFIX}*"):
        partial.unlink()
    try:
        yield unfinished
    except WholeGPTError:  # the same call would fail again
        _delete_hidden(unfinished)
        raise
    _sync_tree(unfinished)
    with _work_folder(path, unfinished.name) as work:
        _put_in_place(
            unfinished, path, work / "old", own
        )  # with its mark, so that a crash before this loses nothing
    (path / MARK).unlink()


def remove_folder(path: Path, own: Patterns | None = None) -> None:
    """Delete the ``own`` files of a folder (default: all), and the folder if no others are left.

    A half-deleted folder is never mistaken for a complete one.
    """
    if not path.exists():
        return
    if own is not None and next(_others_in(path, own), None):
        write_folder_atomic(path, lambda _: None, own)
        return
    with _work_folder(path, "nothing") as work:
        path.rename(work / "deleted")


def recover_folder(path: Path) -> None:
    """Recover from a crash beside the folder ``path``: restore the old content, delete the rest."""
    work = path.with_name(TEMPORARY_PREFIX + path.name)
    if not _is_ours(work):
        return
    old = work / "old"
    if old.exists() and not path.exists():
        old.rename(path)
        sync_folder(path.parent)
    elif old.exists() and (path.parent / _mark_of(work).get("new", "")).exists():
        raise RunError(
            f"{path}: exists, and {old} has the content from before a crash; delete or rename one of them"
        )
    _delete_hidden(work)


def recover_unlocked(path: Path) -> None:
    """Run ``recover_folder`` for a reader that misses ``path``, unless another process is about to create it."""
    if path.name and _is_ours(_real(path).with_name(TEMPORARY_PREFIX + path.name)):
        with contextlib.suppress(FolderBusyError), lock_folder(path, "recovery"):
            pass


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


@contextlib.contextmanager
def _work_folder(path: Path, new: str) -> Iterator[Path]:
    """Yield the hidden sibling in which ``path`` is replaced by the folder ``new``; deleted at the end."""
    recover_folder(path)
    work = path.with_name(TEMPORARY_PREFIX + path.name)
    _make_hidden(work, {"new": new})
    try:
        yield work
    except BaseException:
        if not (work / "old").exists():
            with contextlib.suppress(OSError):
                _delete_hidden(work)
        raise
    _delete_hidden(work)


def _make_hidden(folder: Path, mark: dict[str, Any]) -> None:
    """Create a hidden folder with our mark; an older one of ours is deleted, one of others raises
    ``RunError``.
    """
    if folder.exists():
        if not _is_ours(folder):
            raise RunError(f"{folder}: is in the way, and was not created by wholegpt; rename or move it")
        _delete_hidden(folder)
    folder.mkdir()
    (folder / MARK).write_text(json.dumps(mark), encoding="utf-8")


def _delete_hidden(folder: Path) -> None:
    """Delete a hidden folder of ours. Its mark goes last, which identifies a half-deleted folder."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != MARK:
            path.unlink()
    (folder / MARK).unlink(missing_ok=True)
    folder.rmdir()


def _mark_of(folder: Path) -> dict[str, Any]:
    """Return the mark in a hidden folder; empty if there is none."""
    try:
        content = read_json(folder / MARK)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_ours(folder: Path) -> bool:
    """Return whether wholegpt created a hidden folder: it has our mark, or a crash prevented it."""
    is_folder = os.path.isdir(folder)  # noqa: PTH112 (never raises, even for names that are too long)
    return is_folder and ((folder / MARK).is_file() or not any(folder.iterdir()))


def _put_in_place(new: Path, path: Path, old: Path, own: Patterns | None) -> None:
    """Rename ``new`` to ``path``; existing content becomes ``old``, except files that do not match ``own``."""
    if path.exists():
        if own is not None:
            for other in _others_in(path, own):
                _keep(path, new, other)
        shutil.copymode(path, new)
        try:
            path.rename(old)
            new.rename(path)
        except BaseException:
            if old.exists() and not path.exists():
                old.rename(path)
            raise
    else:
        new.rename(path)
    sync_folder(path.parent)


def _others_in(folder: Path, own: Patterns) -> Iterator[PurePath]:
    """Yield the relative paths of the files and empty folders that do not match ``own``."""
    marks = [MARK] if "request" in _mark_of(folder) else []  # left by a crash
    patterns = [PurePath(pattern).parts for pattern in (*own, *marks, f"{FILE_PREFIX}*")]

    def matches(path: PurePath, whole: bool) -> bool:
        return any(
            (len(parts) == len(path.parts) if whole else len(parts) > len(path.parts))
            and all(map(fnmatchcase, path.parts, parts))
            for parts in patterns
        )

    for root, folders, names in os.walk(folder):
        here = PurePath(root).relative_to(folder)
        links = [name for name in folders if Path(root, name).is_symlink()]
        yield from (here / name for name in (*names, *links) if not matches(here / name, whole=True))
        if not folders and not names and here.parts and not matches(here, whole=False):
            yield here


def _keep(old: Path, new: Path, name: PurePath) -> None:
    """Copy the file or empty folder ``name`` from ``old`` to ``new``."""
    source, target = old / name, new / name
    if os.path.lexists(target):
        if _equal(source, target):  # kept before a crash
            return
        raise RunError(f"{source}: is in the way, and was not created by wholegpt; rename or move it")
    for parent in reversed(name.parents):
        if not (new / parent).exists():
            (new / parent).mkdir()
            shutil.copymode(old / parent, new / parent)
    if source.is_dir() and not source.is_symlink():
        target.mkdir()
        shutil.copymode(source, target)
        return
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # not every file system supports links
        shutil.copy2(source, target, follow_symlinks=False)


def _equal(one: Path, other: Path) -> bool:
    if one.is_symlink() or other.is_symlink():
        return one.is_symlink() and other.is_symlink() and one.readlink() == other.readlink()
    return (one.is_dir() and other.is_dir()) or (
        one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False)
    )


def _sync_tree(path: Path) -> None:
    for folder, _, names in os.walk(path):
        for name in names:
            sync_file(Path(folder) / name)
        sync_folder(Path(folder))
