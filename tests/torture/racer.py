"""Run the same command line in several processes at once: ``python -m tests.torture.racer``.

Reads lines of JSON, each ``[commands, waits, folder]``, and answers each with a line of JSON: the exit code,
process id and standard error of each command line. Processes are forked, since importing takes longer than a
tiny run. With ``waits``, the process that trains or encodes waits until the others have ended, so that it
does not finish before they start.
"""

import contextlib
import importlib
import io
import json
import mmap
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import wholegpt.cli
import wholegpt.data.text.preparation
import wholegpt.runs.train

WAIT_SECONDS = 20.0
ended = mmap.mmap(-1, 1)
"""The number of processes that have ended, in shared memory."""


def race(commands: list[list[str]], waits: bool, directory: str, folder: Path) -> list[dict[str, Any]]:
    """Return the outcome of each command; all start within a few milliseconds."""
    ended[0] = 0 if waits else len(commands)
    start = time.monotonic() + 0.02
    children = [
        _start(command, start, directory, folder / str(number)) for number, command in enumerate(commands)
    ]
    codes: dict[int, int] = {}
    while len(codes) < len(children):
        child, status = os.wait()
        codes[child] = os.waitstatus_to_exitcode(status)
        ended[0] = max(ended[0], len(codes))
    errors = [(folder / str(number)).read_text() for number in range(len(commands))]
    return [
        {"code": codes[child], "process": child, "error": error}
        for child, error in zip(children, errors, strict=True)
    ]


def after_the_others(function: Any, others: int) -> Any:
    """Return ``function``, which waits until the others have ended."""

    def waiting(*arguments: Any, **named: Any) -> Any:
        deadline = time.monotonic() + WAIT_SECONDS
        while ended[0] < others and time.monotonic() < deadline:
            time.sleep(0.001)
        return function(*arguments, **named)

    return waiting


def _start(command: list[str], start: float, directory: str, error: Path) -> int:
    child = os.fork()
    if child:
        return child
    captured = io.StringIO()
    code = 1
    try:
        os.chdir(directory)
        time.sleep(max(0.0, start - time.monotonic()))
        with contextlib.redirect_stderr(captured), contextlib.redirect_stdout(io.StringIO()):
            code = wholegpt.cli.main(command)
    finally:
        error.write_text(captured.getvalue())
        os._exit(code)


def main() -> None:
    for module in ("jinja2", "torch._inductor"):  # otherwise each forked process would import them
        importlib.import_module(module)
    torch.set_num_threads(1)
    wholegpt.runs.train.run_loop = after_the_others(wholegpt.runs.train.run_loop, 3)
    preparation = wholegpt.data.text.preparation
    preparation.plan_split = after_the_others(preparation.plan_split, 3)
    with tempfile.TemporaryDirectory() as folder:
        for line in sys.stdin:
            commands, waits, directory = json.loads(line)
            print(json.dumps(race(commands, waits, directory, Path(folder))), flush=True)


if __name__ == "__main__":
    main()
