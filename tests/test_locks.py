"""Folder locks and atomic replacement of folders."""

import errno
import json
import os
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

from wholegpt import files
from wholegpt.errors import RunError
from wholegpt.files import (
    FolderBusyError,
    claim_name,
    file_inside,
    lock_folder,
    remove_folder,
    resumable_folder,
    write_folder_atomic,
)

HOLDER = """
import sys, time
from pathlib import Path
from wholegpt.files import lock_folder
with lock_folder(Path(sys.argv[1]), "test"):
    print("locked", flush=True)
    time.sleep(60)
"""


def put(name: str, folder: Path) -> None:
    (folder / name).write_text(name)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_second_process_is_rejected_until_the_first_ends(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "locked\n"
        (tmp_path / "link").symlink_to(tmp_path / "run")
        for name in ("run", "link"):
            refusal = pytest.raises(FolderBusyError, match=rf"process {holder.pid} \(test, started 20")
            with refusal, lock_folder(tmp_path / name, "train"):
                pass
        holder.kill()
    with lock_folder(tmp_path / "run", "train"):
        record = json.loads((tmp_path / ".wholegpt-lock-run").read_text())
        assert record["process"] == os.getpid() and record["purpose"] == "train"
    assert names(tmp_path) == ["link"]


def test_locks_are_reentrant_within_a_thread_only(tmp_path: Path) -> None:
    refused: list[str] = []

    def other() -> None:
        try:
            with lock_folder(tmp_path / "run", "test"):
                pass
        except FolderBusyError as error:
            refused.append(str(error))

    with lock_folder(tmp_path / "run", "test"), lock_folder(tmp_path / "run", "test"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(refused) == 1 and f"process {os.getpid()}" in refused[0]
    other()
    assert len(refused) == 1 and names(tmp_path) == []


@pytest.mark.parametrize("patience", [files.LOCK_SECONDS, 0.0005])
def test_only_one_thread_holds_the_lock(
    patience: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock file is deleted at each release, which must not let two threads in.

    With a short timeout a thread often gives up just after the file was deleted, which is not an error of
    creating it.
    """
    monkeypatch.setattr(files, "LOCK_SECONDS", patience)
    inside, most, taken = 0, 0, 0

    def take() -> None:
        nonlocal inside, most, taken
        for _ in range(50):
            try:
                with lock_folder(tmp_path / "run", "test"):
                    inside += 1
                    most, taken = max(most, inside), taken + 1
                    inside -= 1
            except FolderBusyError:
                pass

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1 and taken > 10 and names(tmp_path) == []


def test_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(number: int, *_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", partial(refuse, errno.ENOLCK))
    refusal = pytest.raises(RunError, match="cannot be locked against other processes")
    with refusal, lock_folder(tmp_path / "other", "test"):
        pass
    # Without flock, as on some cluster file systems, the existence of a file is the lock.
    monkeypatch.setattr(fcntl, "flock", partial(refuse, errno.ENOSYS))
    refused: list[str] = []

    def other() -> None:
        try:
            with lock_folder(tmp_path / "run", "test"):
                pass
        except FolderBusyError as error:
            refused.append(str(error))

    with lock_folder(tmp_path / "run", "test"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(refused) == 1 and "another process is writing into it" in refused[0]


def test_concurrent_runs_claim_different_names(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    claimed: list[str] = []
    barrier = threading.Barrier(4)

    def claim() -> None:
        barrier.wait()
        with claim_name(tmp_path / "a", "test") as name:
            claimed.append(name.name)
            barrier.wait()

    threads = [threading.Thread(target=claim) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == ["a-2", "a-3", "a-4", "a-5"]


def test_failed_replacement_restores_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, rename = tmp_path / "run", Path.rename
    write_folder_atomic(path, partial(put, "old"))

    def refuse(self: Path, target: Path) -> Path:
        if self.name in ("new", ".unfinished-run"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="No space"):
        write_folder_atomic(path, partial(put, "new"))
    assert names(tmp_path) == ["run"] and names(path) == ["old"]
    with pytest.raises(OSError, match="No space"), resumable_folder(path, "request") as work:
        put("new", work)
    assert names(path) == ["old"] and names(tmp_path) == [".unfinished-run", "run"]


@pytest.mark.parametrize("kind", ["atomic", "resumable"])
def test_old_folder_is_restored_after_a_crash_between_renames(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, rename = tmp_path / "run", Path.rename
    write_folder_atomic(path, partial(put, "old"))

    class Killed(BaseException):
        pass

    dead = False

    def die(self: Path, target: Path) -> Path:
        nonlocal dead
        if dead or self.name in ("new", ".unfinished-run"):
            dead = True
            raise Killed
        return rename(self, target)

    def replace() -> None:
        if kind == "atomic":
            write_folder_atomic(path, partial(put, "new"))
        else:
            with resumable_folder(path, "request") as work:
                put("new", work)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", die)
        with pytest.raises(Killed):
            replace()
    assert not path.exists()
    with lock_folder(path, "test"):
        assert names(path) == ["old"]
    assert names(tmp_path) == ([".unfinished-run", "run"] if kind == "resumable" else ["run"])
    replace()
    assert names(path) == ["new"] and names(tmp_path) == ["run"]


def test_leftovers_of_a_crash_are_kept_if_the_folder_was_recreated(tmp_path: Path) -> None:
    work = tmp_path / ".partial-run"
    for name in ("old", "new"):
        (work / name).mkdir(parents=True)
    put("weights", work / "old")
    (work / files.MARK).write_text(json.dumps({"new": ".partial-run/new"}))
    (tmp_path / "run").mkdir()
    with (
        pytest.raises(RunError, match="has the content from before a crash"),
        lock_folder(tmp_path / "run", "test"),
    ):
        pass
    assert (work / "old" / "weights").exists()


def test_foreign_hidden_folders_are_not_deleted(tmp_path: Path) -> None:
    for prefix in (".partial-", ".unfinished-"):
        (tmp_path / f"{prefix}run").mkdir()
        put("notes.txt", tmp_path / f"{prefix}run")
    with pytest.raises(RunError, match="was not created by wholegpt"):
        write_folder_atomic(tmp_path / "run", partial(put, "new"))
    with (
        pytest.raises(RunError, match="was not created by wholegpt"),
        resumable_folder(tmp_path / "run", "request"),
    ):
        pass
    assert all((tmp_path / f"{prefix}run" / "notes.txt").exists() for prefix in (".partial-", ".unfinished-"))


def test_replacing_a_folder_keeps_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "run"
    for folder in ("data", "mine/deep", "empty", "steps/step-1"):
        (path / folder).mkdir(parents=True)
    for name in ("old.json", "data/a-1.bin", "steps/step-1/weights"):
        (path / name).write_text("ours")
    for name in ("notes.txt", "data/notes.txt", "mine/deep/notes.txt", "steps/step-1/notes.txt"):
        (path / name).write_text("mine")
    (path / "link").symlink_to("/nowhere")
    (path / "folder link").symlink_to(tmp_path)
    (path / "mine").chmod(0o700)
    path.chmod(0o750)
    own = ("old.json", "new.json", "data/a-*.bin", "steps/step-*/weights")
    write_folder_atomic(path, partial(put, "new.json"), own)
    found = sorted(
        str(one.relative_to(path)) for one in path.rglob("*") if not one.is_dir() or one.is_symlink()
    )
    assert found == [
        "data/notes.txt",
        "folder link",
        "link",
        "mine/deep/notes.txt",
        "new.json",
        "notes.txt",
        "steps/step-1/notes.txt",
    ]
    assert (path / "empty").is_dir() and (path / "mine").stat().st_mode & 0o777 == 0o700
    assert path.stat().st_mode & 0o777 == 0o750 and names(tmp_path) == ["run"]
    # A foreign file with the name of a new file is not replaced either.
    with pytest.raises(RunError, match=r"notes\.txt: is in the way"):
        write_folder_atomic(path, partial(put, "notes.txt"), own)
    assert (path / "notes.txt").read_text() == "mine" and (path / "new.json").exists()
    remove_folder(path, own)
    assert not (path / "new.json").exists() and (path / "notes.txt").exists()
    remove_folder(path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret", "a/../../b", "", "..", "a\\..\\b", "a\0b"])
def test_paths_outside_the_folder_are_rejected(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not inside"):
        file_inside(tmp_path, name)
    assert file_inside(tmp_path, "training/state.json") == tmp_path / "training" / "state.json"
