"""Runs that are kept, and resumed after an interruption."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import wholegpt as wg
from wholegpt.console import Console
from wholegpt.runs.train import Run


def finished(out: Path, begin: Callable[[], Run[Any]], console: Console) -> Path:
    """Return the folder of a finished run. Call ``begin`` if there is none, and resume an interrupted one."""
    if (out / "report.html").exists():  # which is written last
        return out
    if (out / "config.yaml").exists():
        return wg.resume(out, console=console).path
    return begin().path
