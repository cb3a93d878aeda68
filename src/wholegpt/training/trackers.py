"""The trackers: TensorBoard, Weights & Biases, trackio. This file is the program of their processes.

``training.tracking`` starts one process per tracker, so that a tracker can neither stop nor change a run. Its standard
input is JSON lines: a ``TrackedRun``, then every line of the run's log, then one of the kind ``FAILED`` if an exception
ended the run. Its standard output is ``{"place": ...}`` once the tracker is ready, or ``{"problem": ...}``. It needs
neither PyTorch nor the rest of wholegpt.
"""

import importlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any, Protocol

CLOSING_SECONDS = 30.0
"""Most seconds that the trackers may take at the end of a run, all of them together."""
PROJECT = "wholegpt"
"""The project of the runs, in trackers that have projects."""
FAILED = "failed"
"""The kind of the last line if an exception ended the run."""
TENSORBOARD, EVENTS_PREFIX = "tensorboard", "events.out.tfevents."
"""The folder of TensorBoard's files in a run, and the beginning of their names."""


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker knows of the run."""

    tracker: str
    path: str
    id: str
    """Names the run in a tracker; the same whenever the run continues."""
    config: dict[str, Any]
    step: int
    """Steps done when the run starts or continues."""
    logged: dict[str, int]
    """The last step of each kind of line that was logged before, including steps that are done again."""
    process: int
    """The process of the run."""


class Tracker(Protocol):
    """A tracker, ready for metrics."""

    place: str
    """Where its user finds the metrics."""
    replaces: bool
    """Whether the metrics of steps that are done again replace the earlier ones. Others keep the first."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Add the metrics of one line of the log."""
        ...

    def close(self, failed: bool) -> None:
        """Write or send what is left, and whether an exception ended the run."""
        ...


class TensorBoard:
    """Writes event files that TensorBoard opens.

    The files are written with TensorBoard's own records, not with ``torch.utils.tensorboard.SummaryWriter``: that
    imports PyTorch, and TensorFlow if it is installed.
    """

    replaces = True

    def __init__(self, run: TrackedRun) -> None:
        from tensorboard.plugins.text.summary_v2 import text_pb
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._events = importlib.import_module("tensorboard.compat.proto.event_pb2")
        self._summaries = importlib.import_module("tensorboard.compat.proto.summary_pb2")
        folder = Path(run.path, TENSORBOARD)
        folder.mkdir(exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names.
        name = f"{EVENTS_PREFIX}{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._writer = RecordWriter((folder / name).open("xb"))
        self._write(file_version="brain.Event:2")
        # TensorBoard drops what earlier files have from the step of this event on.
        first = run.step + 1 if run.step else 0
        self._write(step=first, session_log={"status": "START"})
        settings = json.dumps(run.config, indent=2).splitlines()
        self._write(step=run.step, summary=text_pb("config", "\n".join(f"    {line}" for line in settings)))
        self.place = f"tensorboard --logdir {quote(str(folder))}"

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Write an event."""
        values = [{"tag": name, "simple_value": value} for name, value in metrics.items()]
        self._write(step=step, summary=self._summaries.Summary(value=values))

    def close(self, failed: bool) -> None:
        """Close the file."""
        self._writer.close()

    def _write(self, **fields: Any) -> None:
        self._writer.write(self._events.Event(wall_time=time.time(), **fields).SerializeToString())
        self._writer.flush()


class WeightsAndBiases:
    """Sends metrics to Weights & Biases; its environment variables (WANDB_MODE, WANDB_PROJECT, ...) apply."""

    replaces = False

    def __init__(self, run: TrackedRun) -> None:
        wandb = importlib.import_module("wandb")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            dir=run.path,
            id=run.id,
            name=Path(run.path).name,
            resume="allow",
            config=run.config,
            allow_val_change=True,  # a run that is trained longer has other settings
            settings=wandb.Settings(console="off", silent=True, x_stats_pid=run.process),
        )
        self.place = (
            f"wandb sync {quote(self._run.dir.removesuffix('/files'))}"
            if self._run.offline
            else self._run.url
        )

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Add the metrics to the run."""
        self._run.log(metrics, step=step)

    def close(self, failed: bool) -> None:
        """Wait until everything is stored or sent."""
        self._run.finish(exit_code=int(failed))


class Trackio:
    """Gives metrics to trackio; its environment variables (TRACKIO_DIR, TRACKIO_SPACE_ID, ...) apply."""

    replaces = False

    def __init__(self, run: TrackedRun) -> None:
        trackio = importlib.import_module("trackio")
        name = f"{Path(run.path).name}-{run.id}"  # trackio finds the run by its name
        self._run = trackio.init(project=PROJECT, name=name, resume="allow", config=run.config, embed=False)
        self.place = f"trackio show --project {PROJECT}"

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Add the metrics to the run."""
        self._run.log(metrics, step=step)

    def close(self, failed: bool) -> None:
        """Wait until everything is stored or sent."""
        self._run.finish()


TRACKERS: dict[str, Callable[[TrackedRun], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
}
"""Each tracker, by the name of its package."""


def metrics_of(record: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of a training or validation line of the log, as KIND/NAME; none for other lines."""
    kind = record["kind"]
    if kind not in ("train", "validation"):
        return {}
    numbers = {
        name: value for name, value in record.items() if type(value) in (int, float) and name != "step"
    }
    return {f"{kind}/{name}": value for name, value in numbers.items()}


def main() -> None:
    """Track the run that standard input describes."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # what trackers print does not belong into the output of the run
        os.dup2(nowhere, stream)
    name = ""

    def answer(**message: str) -> None:
        print(json.dumps(message), file=answers, flush=True)

    try:
        run = TrackedRun(**json.loads(sys.stdin.buffer.readline()))
        name = run.tracker
        threading.Thread(target=_end_after, args=[run.process], daemon=True).start()
        tracker, failed = TRACKERS[name](run), False
        answer(place=tracker.place)
        for line in sys.stdin.buffer:
            if not line.endswith(b"\n"):
                break  # the run was killed as it wrote
            record = json.loads(line)
            if failed := record["kind"] == FAILED:
                break
            again = record["step"] <= run.logged.get(record["kind"], -1)
            metrics = metrics_of(record)
            if metrics and (tracker.replaces or not again):
                tracker.log(record["step"], metrics)
        tracker.close(failed)
    except BaseException as error:
        answer(problem=_problem(name, error))
        os._exit(1)


def _problem(tracker: str, error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name == tracker:
        return f"{tracker} is not installed; pip install 'wholegpt[{tracker}]'"
    return f"{type(error).__name__}: {error}"


def _end_after(process: int) -> None:
    """End this process some time after the ``process`` that started it, also if the tracker hangs."""
    while os.getppid() == process:
        time.sleep(1)
    time.sleep(CLOSING_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main()
