"""Callbacks of training: metrics, evaluation, samples, checkpoints, stopping, progress."""

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
from wholegpt.model import Transformer
from wholegpt.runtime import peak_bytes
from wholegpt.settings.schema import Config
from wholegpt.training.averaging import update_average
from wholegpt.training.events import Callback, StepMetrics
from wholegpt.training.stage import Criterion
from wholegpt.training.state import Best, TrainingState


def due(step: int, every: int, steps: int) -> bool:
    """Return whether something that is done every ``every`` steps, and after the last one, is due after ``step``."""
    return step == steps or (every > 0 and step % every == 0)


class MetricsLog:
    """The log ``metrics.jsonl``: one JSON object per line, of ``kind`` train, validation or sample."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notify: Callable[[dict[str, Any]], None] = lambda record: None
        """Called with each record after it was appended."""

    def append(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Append a line; it is flushed to the operating system."""
        record = {"kind": kind, "step": step, **values}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self.notify(record)

    def read(self) -> list[dict[str, Any]]:
        """Return all complete records, without lines that a crash cut short."""
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
        """Remove the records after ``step``, before a run continues from there."""
        lines = [json.dumps(r, ensure_ascii=False) for r in self.read() if r["step"] <= step]
        write_text_atomic(self.path, "".join(line + "\n" for line in lines))


class LogMetrics(Callback):
    """Logs the metrics of every ``logging.every``-th step."""

    def __init__(self, unit: str, log: MetricsLog, config: Config) -> None:
        """``unit`` is the name of the loss."""
        self.unit, self.log, self.config = unit, log, config
        self.device = torch.device(config.runtime.device)

    def after_step(self, state: TrainingState, metrics: StepMetrics) -> None:
        """Log a line, if one is due."""
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
                    "peak_memory_bytes": peak_bytes(self.device) or None,
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


class WarnOfDropout(Callback):
    """Warns if dropout multiplies the loss of a trained model, as of one that was pretrained without it.

    The first loss of the training, which is computed with dropout, is compared with the evaluation before it.
    """

    WORTH_WARNING = 1.5
    """Ratio of the losses above which the warning appears."""

    def __init__(self, unit: str, config: Config, console: Console) -> None:
        """``unit`` is the name of the loss."""
        self.unit, self.config, self.console = unit, config, console

    def after_step(self, state: TrainingState, metrics: StepMetrics) -> None:
        """Compare the losses after the first step."""
        before = (state.last_validation or {}).get(self.unit)
        if state.step == 1 and before and metrics.loss > self.WORTH_WARNING * before:
            self.console.warn(
                f"with dropout {self.config.model.dropout:g} the loss is {metrics.loss:.2f}, and {before:.2f} in "
                "evaluation, without dropout; the model was probably pretrained without it: try --model.dropout 0"
            )


class Validate(Callback):
    """Evaluates on held-out data, remembers the best evaluation, and stops early if there is no better one."""

    is_training = False

    def __init__(
        self, evaluate: Callable[[], dict[str, Any]], criterion: Criterion, log: MetricsLog, config: Config
    ) -> None:
        self.evaluate, self.criterion, self.log, self.config = evaluate, criterion, log, config
        self.notify: Callable[[TrainingState], None] = lambda state: None
        """Called after each evaluation."""
        self.evaluated = -1
        """Step of the last evaluation."""

    def after_step(self, state: TrainingState, metrics: StepMetrics) -> None:
        """Evaluate, if it is due."""
        if due(state.step, self.config.evaluation.every, self.config.training.steps):
            self.run(state)

    def run(self, state: TrainingState) -> None:
        """Evaluate now."""
        self.evaluated, values = state.step, self.evaluate()
        state.last_validation = values
        self.log.append("validation", state.step, {**values, "train_seconds": state.train_seconds})
        if state.best is None or self.criterion.better(values, state.best.validation):
            state.best = Best(state.step, values)
            state.evaluations_since_best = 0
        else:
            state.evaluations_since_best += 1
            patience = self.config.evaluation.patience
            if patience and state.evaluations_since_best >= patience:
                state.stop_reason = f"no better {self.criterion.label} in {patience} evaluations"
        self.notify(state)


class Sample(Callback):
    """Generates samples, so that one can see what the model has learned."""

    is_training = False

    def __init__(
        self, generate: Callable[[], str], log: MetricsLog, config: Config, console: Console
    ) -> None:
        self.generate, self.log, self.config, self.console = generate, log, config, console

    def after_step(self, state: TrainingState, metrics: StepMetrics) -> None:
        """Generate a sample, if one is due. The last one is printed with the result of the run."""
        every, tokens = self.config.logging.sample_every, self.config.logging.sample_tokens
        if tokens and due(state.step, every, self.config.training.steps):
            text = self.generate()
            self.log.append("sample", state.step, {"text": text})
            if state.step < self.config.training.steps:
                self.console.note(f"sample after step {state.step:,}:\n{sample_for_people(text)}\n")


class SaveCheckpoints(Callback):
    """Saves checkpoints when due, at each new best, and when the run stops."""

    is_training = False

    def __init__(self, save: Callable[[TrainingState], None], config: Config, saved_reason: str = "") -> None:
        """``saved_reason`` is the reason to stop in the checkpoint that the run continues from."""
        self.save, self.config, self._saved_reason = save, config, saved_reason

    def after_step(self, state: TrainingState, metrics: StepMetrics) -> None:
        """Save, if it is due. Must come after the callbacks that change the state."""
        improved = state.best is not None and state.best.step == state.step
        due_now = due(state.step, self.config.checkpointing.every, self.config.training.steps)
        if due_now or improved or state.stop_reason:
            self.save(state)
            self._saved_reason = state.stop_reason

    def save_reason(self, state: TrainingState) -> None:
        """Save again if the run was stopped outside ``after_step``, so that resuming knows why."""
        if state.stop_reason != self._saved_reason:
            self.save(state)


class Unfreeze(Callback):
    """Unfreezes the head first, then one more block, from the last, every ``every`` steps (Howard, Ruder 2018).

    The embeddings follow after all blocks.
    """

    def __init__(self, model: Transformer, every: int, step: int) -> None:
        """``step`` is the number of steps done."""
        self.model, self.every = model, every
        self._apply(step)

    def after_step(self, state: TrainingState, metrics: StepMetrics) -> None:
        """Select the parameters that the next step trains."""
        self._apply(state.step)

    def _apply(self, step: int) -> None:
        blocks = self.model.blocks
        trained = step // self.every
        self.model.requires_grad_(trained > len(blocks))
        for block in [*blocks][max(0, len(blocks) - trained) :]:
            block.requires_grad_(True)
        for parameter in self.model.head_parameters():
            parameter.requires_grad_(True)


class TimeLimit(Callback):
    """Stops the run, which can be resumed, at a time of ``time.monotonic``, and evaluates the last weights."""

    REASON = "the time given by --max-seconds is over"

    def __init__(self, deadline: float, validate: Validate) -> None:
        self.deadline, self.validate = deadline, validate

    def after_step(self, state: TrainingState, metrics: StepMetrics) -> None:
        """Stop if the time is over. The last weights may be the best ones."""
        if time.monotonic() >= self.deadline and not state.stop_reason:
            if self.validate.evaluated != state.step:
                self.validate.run(state)
            state.stop_reason = self.REASON


class CheckPace(Callback):
    """Pauses a planned run when ``should_adjust`` says so, to adjust its steps to the speed of the machine."""

    REASON = "the steps are adjusted to the speed"

    def __init__(self, should_adjust: Callable[[TrainingState], bool]) -> None:
        self.should_adjust = should_adjust

    def after_step(self, state: TrainingState, metrics: StepMetrics) -> None:
        """Pause, if the number of steps should change."""
        if not state.stop_reason and self.should_adjust(state):
            state.stop_reason = self.REASON


class WatchPace(Callback):
    """Notes when training will take longer or shorter than planned. The plan does not change."""

    WORTH_SAYING = 0.1
    """Relative difference from the last note above which a new note is printed."""
    LOOKS = 3
    """Number of intervals whose median counts, so that one slow moment has no effect."""

    def __init__(self, planned_seconds: float, config: Config, console: Console) -> None:
        self.said, self.config, self.console = planned_seconds, config, console
        self.looks: deque[float] = deque(maxlen=self.LOOKS + 1)
        self.every = max(20, config.training.steps // 20)

    def after_step(self, state: TrainingState, metrics: StepMetrics) -> None:
        """Estimate the remaining time from the median of the last intervals, if it is due."""
        left = self.config.training.steps - state.step
        if state.step % self.every or left < self.every:
            return
        self.looks.append(state.train_seconds)
        if len(self.looks) <= self.LOOKS:
            return
        stretch = median(later - earlier for earlier, later in pairwise(self.looks))
        seconds = state.train_seconds + left * stretch / self.every
        if abs(seconds / self.said - 1) > self.WORTH_SAYING:
            than = "longer" if seconds > self.said else "shorter"
            self.said = seconds
            self.console.note(
                f"training will take {than} than planned: {seconds:.0f} s, of which {state.train_seconds:.0f} s have "
                "passed; the number of steps does not change"
            )


class StopOnSignal(Callback):
    """Turns Ctrl-C or SIGTERM into a stop after the current step; a second one stops at once.

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
        """Stop if a signal came."""
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
    """Advances the progress bar, and shows each evaluation as a line."""

    def __init__(self, progress: Progress, console: Console, unit: str, criterion: Criterion) -> None:
        """``unit`` is the name of the loss."""
        self.progress, self.console, self.criterion = progress, console, criterion
        self.unit = _in_words(unit)
        self._shown = self._rate = 0.0

    def after_step(self, state: TrainingState, metrics: StepMetrics) -> None:
        """Advance by a step, and show the smoothed loss (or reward) and speed, and the last evaluation."""
        weight = 1 / min(state.step, 20)
        metric = self.criterion.metric
        rewarded = self.criterion.higher_is_better and metric in metrics.others
        new = metrics.others[metric] if rewarded else metrics.loss
        if math.isfinite(new):
            self._shown += (new - self._shown) * weight if self._shown else new
        rate = metrics.tokens / metrics.seconds
        self._rate += (rate - self._rate) * weight if self._rate else rate
        value = (state.last_validation or {}).get(metric)
        held_out = [] if value is None else [f"validation {value:.3f}"]
        shown = f"{metric} {self._shown:.3f}" if rewarded else f"loss {self._shown:.3f} {self.unit}".rstrip()
        self.progress.advance(1, shown, *held_out, f"{self._rate:,.0f} tok/s")

    def after_evaluation(self, state: TrainingState) -> None:
        """Show the step, the metric of the evaluation, and whether it is the best so far."""
        value = (state.last_validation or {}).get(self.criterion.metric)
        shown = (
            "not a number" if value is None else f"{value:.4f} {_in_words(self.criterion.metric)}".rstrip()
        )
        best = " (best)" if state.best and state.best.step == state.step else ""
        step = f"step {state.step:,}: "
        self.console.note(f"{step}{self.criterion.label} {shown}{best}", shorter=f"{step}{shown}{best}")


def _in_words(unit: str) -> str:
    """Return "nats/token" for ``nats_per_token``; an empty string for a metric without a unit."""
    return unit.replace("_per_", "/").replace("_", " ") if "_per_" in unit else ""


PAUSES = (StopOnSignal.REASON, TimeLimit.REASON, CheckPace.REASON)
"""Reasons to stop after which resuming continues. After any other reason a run is finished, unless it is extended."""
