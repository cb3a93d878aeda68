"""Hooks before every file-system call of a save."""

import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import safetensors.torch

CALLS: list[tuple[Any, str]] = [
    (pathlib.Path, "exists"),
    (pathlib.Path, "glob"),
    (pathlib.Path, "is_dir"),
    (pathlib.Path, "mkdir"),
    (pathlib.Path, "open"),
    (pathlib.Path, "rename"),
    (pathlib.Path, "replace"),
    (pathlib.Path, "unlink"),
    (os, "close"),
    (os, "fsync"),
    (os, "open"),
    (os, "walk"),
    (shutil, "rmtree"),
    (safetensors.torch, "save_file"),
]

Hook = Callable[[str], None]


class WatchedFile:
    """An open file whose writes call the hook; a failing write has written half of its content."""

    def __init__(self, file: Any, before: Hook) -> None:
        self._file, self._before = file, before

    def __enter__(self) -> "WatchedFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, content: Any) -> int:
        try:
            self._before("write")
        except BaseException:
            self._file.write(content[: len(content) // 2])
            raise
        return self._file.write(content)

    def flush(self) -> None:
        self._before("flush")
        self._file.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def patch_file_system(monkeypatch: Any, before: Hook) -> None:
    """Call ``before`` with the name of each file-system call, just before the call."""
    for owner, name in CALLS:
        original = getattr(owner, name)

        def hooked(*arguments: Any, _original: Any = original, _name: str = name, **options: Any) -> Any:
            before(_name)
            result = _original(*arguments, **options)
            writing = _name == "open" and hasattr(result, "writable") and result.writable()
            return WatchedFile(result, before) if writing else result

        monkeypatch.setattr(owner, name, hooked)
