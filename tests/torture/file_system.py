"""Puts a hook before every file-system call that a save makes."""

import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import safetensors.torch

CALLS: list[tuple[Any, str]] = [
    (pathlib.Path, "open"),
    (pathlib.Path, "mkdir"),
    (pathlib.Path, "rename"),
    (pathlib.Path, "replace"),
    (pathlib.Path, "unlink"),
    (pathlib.Path, "glob"),
    (os, "fsync"),
    (os, "open"),
    (shutil, "rmtree"),
    (safetensors.torch, "save_file"),
]


def patch_file_system(monkeypatch: Any, before: Callable[[str], None]) -> None:
    """Call ``before`` with the name of each call, just before it is made."""
    for owner, name in CALLS:
        original = getattr(owner, name)

        def hooked(*arguments: Any, _original: Any = original, _name: str = name, **options: Any) -> Any:
            before(_name)
            return _original(*arguments, **options)

        monkeypatch.setattr(owner, name, hooked)
