"""What happens between steps: metrics, evaluation, samples, checkpoints, stopping, progress."""

import json
import math
import os
import signal
import time
from collections import deque
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any

import torch

from wholegpt.console import Console, Progress, sample_for_people
from wholegpt.files import write_text_atomic
from wholegpt.model import TaskModel, Transformer
from wholegpt.settings.schema import Config
from wholegpt.training.averaging import update_average
from wholegpt.training.events import Callback, StepMetrics
from wholegpt.training.stage import Criterion
from wholegpt.training.state import Best, TrainingState


def due(step: int, every: int, steps: int) -> bool:
    """Whether something done each ``every`` steps, and after the last, is due after ``step`` steps."""
    return step == steps or (every > 0 and step % every == 0)


class MetricsLog:
    """``metrics.jsonl``: one JSON object a line, with ``kind`` train, validation or sample."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Add a line; it is on its way to the disk when this returns."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "step": step, **values}, ensure_ascii=False) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All whole records; lines that hold none, such as a last one that a crash cut short, are left out."""
        if not self.path.exists():
            return []
        records: list[dict[str, Any]] = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                records.append(record)
        return records

    def rewind(self, step: int) -> None:
        """Forget what was logged after ``step``, before a run goes on from there."""
        lines = [json.dumps(r, ensure_ascii=False) for r in self.read() if r["step"] <= step]
        write_text_atomic(self.path, "".join(line + "\n" for line in lines))


class LogMetrics(Callback):
    """Writes the step's figures down each ``logging.every`` steps."""

    def __init__(self, unit: str, log: MetricsLog, config: Config) -> None:
        """``unit`` is what the loss is called."""
        self.unit, self.log, self.config = unit, log, config

    def after_step(self, state: TrainingState, metrics: StepMetrics) -> None:
        """One line, where it is due."""
        if state.step == 1 or due(state.step, self.config.logging.every, self.config.training.steps):
            self.log.append(
                "train",
                state.step,
                {
                    # A float16 step that overflowed may have no finite loss; JSON could not write it.
                    self.unit: metrics.loss if math.isfinite(metrics.loss) else None,
                    "learning_rate": metrics.learning_rate,
                    "gradient_norm": metrics.gradient_norm,
                    "tokens": state.tokens,
                    "tokens_per_second": metrics.tokens / metrics.seconds,
                    "train_seconds": state.train_seconds,
                    **metrics.others,
                },
            )


class AverageWeights(Callback):
    """Keeps the running average of the weights beside the optimizer's state."""

    def __init__(self, optimizer: torch.optim.Optimizer, decay: float) -> None:
        self.optimizer, self.decay = optimizer, decay

    def after_step(self, state: TrainingState, metrics: StepMetrics) -> None:
        """Update the average, unless the step made no update."""
        if metrics.gradient_norm is not None:
            update_average(self.optimizer, self.decay, state.step)


class Validate(Callback):
    """Measures on held-out data, keeps the best, and stops when that has not improved for long enough."""

    is_training = False

    def __init__(
        self, evaluate: Callable[[], dict[str, Any]], criterion: Criterion, log: MetricsLog, config: Config
    ) -> None:
        self.evaluate, self.criterion, self.log, self.config = evaluate, criterion, log, config
        self.notify: Callable[[TrainingState], None] = lambda state: None
        """Called after each evaluation."""

    def after_step(self, state: TrainingState, metrics: StepMetrics) -> None:
        """An evaluation, where it is due."""
        if due(state.step, self.config.evaluation.every, self.config.training.steps):
            self.run(state)

    def run(self, state: TrainingState) -> None:
        """Evaluate now."""
        values = self.evaluate()
        state.last_validation = values
        self.log.append("validation", state.step, {**values, "train_seconds": state.train_seconds})
        if state.best is None or self.criterion.better(values, state.best.validation):
            state.best = Best(state.step, values)
            state.evaluations_since_best = 0
        else:
            state.evaluations_since_best += 1
            patience = self.config.evaluation.patience
            if patience and state.evaluations_since_best >= patience:
                state.stop_reason = f"no better {self.criterion.words} in {patience} evaluations"
        self.notify(state)


class Sample(Callback):
    """Lets the model write, so that one can see what it has learned."""

    is_training = False

    def __init__(self, write: Callable[[], str], log: MetricsLog, config: Config, console: Console) -> None:
        self.write, self.log, self.config, self.console = write, log, config, console

    def after_step(self, state: TrainingState, metrics: StepMetrics) -> None:
        """A sample, where it is due; the last one is left to whoever shows the result."""
        every, tokens = self.config.logging.sample_every, self.config.logging.sample_tokens
        if tokens and due(state.step, every, self.config.training.steps):
            text = self.write()
            self.log.append("sample", state.step, {"text": text})
            if state.step < self.config.training.steps:
                self.console.note(f"sample after step {state.step:,}:\n{sample_for_people(text)}\n")


class SaveCheckpoints(Callback):
    """Saves when due, at each new best, and when the run stops."""

    is_training = False

    def __init__(self, save: Callable[[TrainingState], None], config: Config) -> None:
        self.save, self.config = save, config

    def after_step(self, state: TrainingState, metrics: StepMetrics) -> None:
        """A checkpoint, where it is due. Must come after what can change the state."""
        improved = state.best is not None and state.best.step == state.step
        due_now = due(state.step, self.config.checkpointing.every, self.config.training.steps)
        if due_now or improved or state.stop_reason:
            self.save(state)


class Unfreeze(Callback):
    """Trains the head alone at first, then one block more, from the last, each ``every`` steps (Howard and Ruder 2018).

    The rest, embeddings and all, is trained once every block is.
    """

    def __init__(self, model: Transformer, every: int, step: int) -> None:
        """``step`` steps are done."""
        self.model, self.every = model, every
        self._apply(step)

    def after_step(self, state: TrainingState, metrics: StepMetrics) -> None:
        """Decide what the next step trains."""
        self._apply(state.step)

    def _apply(self, step: int) -> None:
        blocks = self.model.blocks
        trained = step // self.every
        self.model.requires_grad_(trained > len(blocks))
        for block in [*blocks][max(0, len(blocks) - trained) :]:
            block.requires_grad_(True)
        if isinstance(self.model, TaskModel):
            self.model.head.requires_grad_(True)


class TimeLimit(Callback):
    """Stops early, resumably, when the wall clock since its creation passes ``seconds``."""

    REASON = "the time given by --max-seconds is over"

    def __init__(self, seconds: float) -> None:
        self.deadline = time.monotonic() + seconds

    def after_step(self, state: TrainingState, metrics: StepMetrics) -> None:
        """Stop when the time is over."""
        if time.monotonic() >= self.deadline and not state.stop_reason:
            state.stop_reason = self.REASON


class WatchPace(Callback):
    """Says so where the steps will take another time than planned; the plan itself stays."""

    WORTH_SAYING = 0.1
    """Share by which the time must differ from what was last said."""
    LOOKS = 3
    """Of so many stretches between looks at the clock the median counts: one odd moment says nothing."""

    def __init__(self, planned_seconds: float, config: Config, console: Console) -> None:
        self.said, self.config, self.console = planned_seconds, config, console
        self.looks: deque[float] = deque(maxlen=self.LOOKS + 1)
        self.every = max(20, config.training.steps // 20)

    def after_step(self, state: TrainingState, metrics: StepMetrics) -> None:
        """A look at the clock, where it is due: the time left follows from the median of the last stretches."""
        left = self.config.training.steps - state.step
        if state.step % self.every or left < self.every:
            return
        self.looks.append(state.train_seconds)
        if len(self.looks) <= self.LOOKS:
            return
        stretch = median(later - earlier for earlier, later in pairwise(self.looks))
        seconds = state.train_seconds + left * stretch / self.every
        if abs(seconds / self.said - 1) > self.WORTH_SAYING:
            than = "longer" if seconds > self.said else "less long"
            self.said = seconds
            self.console.note(
                f"the steps take another time than planned: training will take {than} than said, "
                f"{seconds:.0f} s of training in all ({state.train_seconds:.0f} s are over); the steps stay as planned"
            )


class StopOnSignal(Callback):
    """Turns Ctrl-C, or a polite kill, into a stop after the current step; a second one stops at once.

    Before the end of the first step, which may wait for PyTorch's compiler, there is nothing to save: it stops at once.
    """

    REASON = "interrupted"

    def __init__(self, console: Console) -> None:
        self.console, self.asked, self.stepped = console, False, False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopOnSignal":
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous[number] = signal.signal(number, self._handle)
            except ValueError:  # only the main thread may
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def after_step(self, state: TrainingState, metrics: StepMetrics) -> None:
        """Stop when asked."""
        self.stepped = True
        if self.asked and not state.stop_reason:
            state.stop_reason = self.REASON

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.stepped:
            raise KeyboardInterrupt
        if self.asked:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.asked = True
        self.console.note("stopping after this step; Ctrl-C again stops at once, without saving")


class ShowProgress(Callback):
    """Moves the progress bar."""

    def __init__(self, progress: Progress, criterion: Criterion) -> None:
        self.progress, self.criterion = progress, criterion
        self._loss = self._rate = 0.0

    def after_step(self, state: TrainingState, metrics: StepMetrics) -> None:
        """One step on, with a smoothed loss and speed."""
        weight = 1 / min(state.step, 20)
        if math.isfinite(metrics.loss):
            self._loss += (metrics.loss - self._loss) * weight if self._loss else metrics.loss
        rate = metrics.tokens / metrics.seconds
        self._rate += (rate - self._rate) * weight if self._rate else rate
        validation = state.last_validation
        value = validation and validation[self.criterion.figure]
        held_out = f"  {self.criterion.words} {value:.3f}" if value is not None else ""
        self.progress.advance(1, f"loss {self._loss:.3f}{held_out}  {self._rate:,.0f} tokens/s")
