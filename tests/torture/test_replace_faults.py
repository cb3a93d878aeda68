"""A fault at each file-system call while replacing a folder: the old or the new one is complete, and is found."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.torture.file_system import patch_file_system
from tests.torture.test_save_faults import Fault, Killed
from wholegpt.errors import RunError
from wholegpt.files import lock_folder, resumable_folder, write_folder_atomic, write_text_atomic

OWN = ("config", "data/a-*")


def fill(content: str, folder: Path) -> None:
    (folder / "data").mkdir()
    (folder / "config").write_text(content)
    (folder / "data" / f"a-{content}").write_text(content)


def atomically(path: Path, content: str) -> None:
    write_folder_atomic(path, partial(fill, content), OWN)


def resumably(path: Path, content: str) -> None:
    with resumable_folder(path, "request", OWN) as work:
        if not (work / "config").exists():
            (work / "data").mkdir(exist_ok=True)
            (work / "data" / f"a-{content}").write_text(content)
            write_text_atomic(work / "config", content)


def whole(path: Path) -> str:
    """Return the content of ``path``, which must be complete and include foreign files."""
    content = (path / "config").read_text()
    assert (path / "data" / f"a-{content}").read_text() == content
    assert len(list((path / "data").glob("a-*"))) == 1
    assert (path / "notes").read_text() == (path / "data" / "notes").read_text() == "mine"
    return content


def begin(folder: Path) -> Path:
    path = folder / "run"
    write_folder_atomic(path, partial(fill, "old"))
    for notes in (path / "notes", path / "data" / "notes"):
        notes.write_text("mine")
    return path


@pytest.mark.parametrize("replace", [atomically, resumably])
def test_fault_at_every_call_of_a_replacement(replace: Callable[[Path, str], None], tmp_path: Path) -> None:
    counting = Fault(10**9, "error")
    path = begin(tmp_path / "count")
    with pytest.MonkeyPatch.context() as patch:
        patch_file_system(patch, counting)
        replace(path, "new")
    assert whole(path) == "new" and counting.calls > 20
    outcomes: set[tuple[str, str]] = set()
    for kind in ("error", "kill"):
        for call in range(counting.calls):
            path = begin(tmp_path / f"{kind}-{call}")
            fault = Fault(call, kind)
            with pytest.MonkeyPatch.context() as patch:
                patch_file_system(patch, fault)
                try:
                    replace(path, "new")
                except (OSError, RunError, Killed):
                    pass
            assert fault.fired
            with lock_folder(path, "test"):  # every command locks the folder, which restores it
                outcomes.add((kind, whole(path)))
                replace(path, "newer" if replace is atomically else "new")
            assert whole(path) in ("newer", "new")
            assert [one.name for one in path.parent.iterdir()] == ["run"]
    assert outcomes == {(kind, content) for kind in ("error", "kill") for content in ("old", "new")}
