"""A training process that kills itself: ``python -m tests.torture.victim RUN MODE NUMBER [rollouts]``.

``delay``: SIGKILL NUMBER seconds after the training loop starts.
``call``: SIGKILL just before the NUMBER-th file-system call made while saving a checkpoint.
``never``: run to the end, and print the seconds of the loop and the number of such calls.
With ``rollouts``, it trains on its own samples instead of the text.
"""

import os
import signal
import sys
import threading
import time
from typing import Any

from tests.torture.file_system import patch_file_system
from tests.training import self_training
from wholegpt.checkpoint import CheckpointStore
from wholegpt.console import Console
from wholegpt.runs import api
from wholegpt.runs import train as runs


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Setter:
    """The method of pytest's monkeypatch that ``patch_file_system`` needs."""

    def setattr(self, target: Any, name: str, value: Any) -> None:
        setattr(target, name, value)


def main() -> None:
    run, mode, number = sys.argv[1], sys.argv[2], float(sys.argv[3])
    if "rollouts" in sys.argv[4:]:
        self_training.register()
    calls, saving = 0, False

    def before(name: str) -> None:
        nonlocal calls
        calls += saving
        if mode == "call" and saving and calls == int(number):
            die()

    save, loop = CheckpointStore.save, runs.run_loop

    def watched_save(*arguments: Any) -> None:
        nonlocal saving
        saving = True
        save(*arguments)
        saving = False

    def watched_loop(*arguments: Any) -> None:
        if mode == "delay":
            timer = threading.Timer(number, die)
            timer.daemon = True
            timer.start()
        started = time.monotonic()
        loop(*arguments)
        print(time.monotonic() - started, calls)

    CheckpointStore.save = watched_save  # pyright: ignore[reportAttributeAccessIssue]
    runs.run_loop = watched_loop
    patch_file_system(Setter(), before)
    api.resume(run, console=Console(quiet=True))


if __name__ == "__main__":
    main()
