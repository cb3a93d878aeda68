"""Runs of measurements that are begun once, and gone on with where they were stopped."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import wholegpt as wg
from wholegpt.console import Console
from wholegpt.runs.train import Run


def finished(out: Path, begin: Callable[[], Run[Any]], console: Console) -> Path:
    """The folder of a finished run: made by ``begin`` where there is none, gone on with where it was stopped."""
    if (out / "report.html").exists():  # which is written last
        return out
    if (out / "config.yaml").exists():
        return wg.resume(out, console=console).path
    return begin().path
