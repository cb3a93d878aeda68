"""Ctrl-C while native code runs.

Python handles signals between two of its own instructions, so a call into native code that lasts minutes
would delay Ctrl-C for minutes. Such calls run in a thread while the main thread waits, which can be
interrupted. Native code cannot be stopped: after Ctrl-C its thread continues until the process ends, and
``end_process`` does not wait for it. This is safe because such calls write no files.
"""

import contextvars
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

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
