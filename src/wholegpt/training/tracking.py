"""Tracking: every line of a run's log goes to the trackers, each in a process of its own."""

import contextlib
import dataclasses
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wholegpt.console import Console
from wholegpt.errors import shortened
from wholegpt.files import read_json, write_json_atomic
from wholegpt.settings.choices import Tracker
from wholegpt.settings.schema import Config
from wholegpt.settings.serialization import to_mapping
from wholegpt.training import trackers as program
from wholegpt.training.events import Callback
from wholegpt.training.state import TrainingState
from wholegpt.training.trackers import CLOSING_SECONDS, FAILED, TrackedRun

TRACKER_ID = "trackers.json"
"""The file of a run with its id in trackers."""
MOST_WAITING_BYTES = 2**24
"""Most bytes that wait for a tracker. One that has more waiting is dropped."""
NOTED_SECONDS = 1.0
"""Seconds of waiting for trackers at the end, after which a note says so."""
PIPE_BYTES = 2**16
LONGEST_PROBLEM = 300
"""Characters of a problem that are shown."""


class Tracking(Callback):
    """Gives every line of the log to the trackers of a run, and waits for them at the end of its ``with`` block.

    A tracker that fails, when it is imported or started or at any line, is dropped with a warning of one line. So is
    one that does not read what waits for it, or is not done ``CLOSING_SECONDS`` after the end.
    """

    def __init__(
        self, path: Path, names: Sequence[Tracker], before: Sequence[Mapping[str, Any]], console: Console
    ) -> None:
        """``before`` are the records of the log, including those of steps that the run is about to repeat."""
        self.path, self.names, self.console = path, names, console
        self.logged = {str(record.get("kind")): int(record["step"]) for record in before}
        self._running: list[_Process] = []

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(self, exception: type[BaseException] | None, *_: object) -> None:
        started, noted = time.monotonic(), False
        for process in self._running:
            if exception:
                process.send({"kind": FAILED})
        try:
            while self._running and (seconds := time.monotonic() - started) < CLOSING_SECONDS:
                for process in self._running:
                    process.finish()
                self._attend()
                if seconds > NOTED_SECONDS and not noted:
                    names, noted = ", ".join(process.name for process in self._running), True
                    self.console.note(f"waiting for {names}, for at most {CLOSING_SECONDS:.0f} s")
                time.sleep(0.01)
        finally:
            for process in self._running:
                process.problem = (
                    f"not done {time.monotonic() - started:.0f} s after training; metrics may be missing"
                )
            self._attend()

    def at_start(self, state: TrainingState, config: Config) -> None:
        """Start the trackers, if there are steps to do."""
        if not self.names or state.stop_reason or state.step >= config.training.steps:
            return
        settings, number = to_mapping(config), _tracker_id(self.path)
        for name in self.names:
            run = TrackedRun(
                name, str(self.path.absolute()), number, settings, state.step, self.logged, os.getpid()
            )
            self._running.append(_Process(run))
        self._attend()

    def after_log(self, state: TrainingState, record: Mapping[str, Any]) -> None:
        """Send a line of the log."""
        for process in self._running:
            process.send(record)
        self._attend()

    def _attend(self) -> None:
        """Show what the trackers answered, and drop those that failed or are done."""
        for process in [*self._running]:
            process.attend()
            if process.place:
                self.console.note(f"tracker {process.name}: {process.place}")
                process.place = ""
            if process.problem:
                problem = shortened(process.problem, LONGEST_PROBLEM).rstrip(".")
                self.console.warn(f"tracker {process.name}: {problem}; training is not affected")
            if process.problem or process.done:
                process.end()
                self._running.remove(process)


class _Process:
    """The process of a tracker. Nothing here waits for it: what its pipe does not take stays in memory."""

    def __init__(self, run: TrackedRun) -> None:
        self.name, self.place, self.problem, self.done = run.tracker, "", "", False
        self._waiting, self._answers, self._closing = bytearray(), bytearray(), False
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", program.__file__],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the run
            )
        except OSError as error:
            self.problem = f"cannot be started: {error.strerror or error}"
            return
        assert self._process.stdin and self._process.stdout
        self._input, self._output = self._process.stdin, self._process.stdout
        for pipe in (self._input, self._output):
            os.set_blocking(pipe.fileno(), False)
        self.send(dataclasses.asdict(run))

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message, now or when the process has read earlier ones."""
        self._waiting += json.dumps(message).encode() + b"\n"
        if len(self._waiting) > MOST_WAITING_BYTES:
            self.problem = self.problem or "does not read its metrics"

    def finish(self) -> None:
        """Close the input of the process once everything is sent, so that it ends."""
        self._closing = True

    def attend(self) -> None:
        """Send what waits, and read the answers."""
        if not self._process:
            return
        ended = self._process.poll() is not None  # before its answers are read, so that none is missed
        with contextlib.suppress(BrokenPipeError):
            while self._waiting and (sent := self._input.write(self._waiting[:PIPE_BYTES])):
                del self._waiting[:sent]
        if self._closing and not self._waiting:
            self._input.close()
        self._answers += self._output.read() or b""
        while b"\n" in self._answers:
            line, _, self._answers = self._answers.partition(b"\n")
            try:
                answer = json.loads(line)
            except ValueError:
                continue  # another program's output
            if not isinstance(answer, dict):
                continue
            self.place = answer.get("place", self.place)
            self.problem = self.problem or answer.get("problem", "")
        if ended:
            self.done = True
            if not self.problem and (self._process.returncode or not self._closing):
                self.problem = f"its process ended with exit code {self._process.returncode}"

    def end(self) -> None:
        """Kill the process, if it has not ended, and what it has started."""
        if not self._process:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=1)
        self._input.close()
        self._output.close()


def _tracker_id(run: Path) -> str:
    """Return the id of a run in trackers, which its folder remembers."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(read_json(run / TRACKER_ID)["id"])
    number = secrets.token_hex(4)
    write_json_atomic(run / TRACKER_ID, {"id": number})
    return number
