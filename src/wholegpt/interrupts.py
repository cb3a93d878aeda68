"""Ctrl-C while native code runs.

Python handles signals between two of its own instructions, so a call into native code that lasts minutes
would delay Ctrl-C for minutes. Such calls run in a thread while the main thread waits, which can be
interrupted. Native code cannot be stopped: after Ctrl-C its thread continues until the process ends, and
``end_process`` does not wait for it. This is safe because such calls write no files.
"""

import contextvars
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")

THREAD_NAME = "wholegpt-native"
"""Prefix of the names of threads that run native code."""
PATIENCE_SECONDS = 0.2


def interruptible(call: Callable[[], T]) -> T:
    """Run ``call()`` so that Ctrl-C takes effect at once. The call must release Python's lock and write no
    files.
    """
    if threading.current_thread() is not threading.main_thread():
        return call()
    outcome: Future[T] = Future()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            outcome.set_result(context.run(call))
        except BaseException as error:
            outcome.set_exception(error)

    thread = threading.Thread(target=run, name=THREAD_NAME, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(1.0)
    return outcome.result()


class InterruptNoted:
    """Remembers a Ctrl-C, which raises ``KeyboardInterrupt`` as usual.

    An import that it interrupts may turn it into another error.
    """

    def __init__(self) -> None:
        self.came = False
        self._previous: Any = None

    def __enter__(self) -> "InterruptNoted":
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and callable(signal.getsignal(signal.SIGINT)):  # it is not ignored
            self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        self._previous(number, frame)


def end_process(code: int) -> None:
    """End the process with the exit ``code`` if native code still runs in some thread; otherwise return."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    for thread in threading.enumerate():
        if thread.name.startswith(THREAD_NAME):
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
