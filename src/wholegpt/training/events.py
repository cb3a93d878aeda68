"""The events of a training run, and who listens to them."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from wholegpt.settings.schema import Config
from wholegpt.training.state import TrainingState


@dataclass(frozen=True)
class StepMetrics:
    """What one step of the loop measured."""

    loss: float
    """Mean over the step's terms; for language modeling, nats per token."""
    learning_rate: float
    gradient_norm: float | None
    """Global L2 norm before clipping. None if the step made no update: float16 overflowed, or nothing has gradients."""
    tokens: int
    seconds: float
    others: Mapping[str, float] = field(default_factory=dict)
    """Other metrics of the objective."""


class Callback:
    """A listener to the events of a run. Override the methods of the events that it needs.

    Setting ``state.stop_reason`` in any event ends the run after the current step. An exception ends it at once and
    reaches the caller of the run unchanged; the checkpoints saved before are kept.
    """

    is_training = True
    """Whether the time of ``after_step`` counts as training time. That of evaluation, samples and saving does not."""

    def at_start(self, state: TrainingState, config: Config) -> None:
        """Listen to the start of the run, or to its continuation after ``state.step`` steps, with resolved settings."""

    def before_update(self, state: TrainingState, model: nn.Module) -> None:
        """Listen to a step whose gradients are complete and clipped, before the optimizer uses them."""

    def after_step(self, state: TrainingState, metrics: StepMetrics) -> None:
        """Listen to the end of a step; ``state.step`` counts it."""

    def after_evaluation(self, state: TrainingState) -> None:
        """Listen to an evaluation, whose figures are in ``state.last_validation``."""

    def after_log(self, state: TrainingState, record: Mapping[str, Any]) -> None:
        """Listen to a line of metrics.jsonl: its ``kind`` (train, validation or sample), ``step``, and values."""

    def at_end(self, state: TrainingState) -> None:
        """Listen to the end of the loop, whether all steps are done or the run is stopped."""


class Callbacks:
    """Several callbacks, called in order."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = list(callbacks)

    def at_start(self, state: TrainingState, config: Config) -> None:
        """Pass the event on."""
        for callback in self.callbacks:
            callback.at_start(state, config)

    def before_update(self, state: TrainingState, model: nn.Module) -> None:
        """Pass the event on."""
        for callback in self.callbacks:
            callback.before_update(state, model)

    def after_step(self, state: TrainingState, metrics: StepMetrics, started: float) -> None:
        """Pass the event on, and add the time since ``started`` to the clocks of ``state``."""
        for callback in self.callbacks:
            started = _charge(state, "train_seconds", started)
            callback.after_step(state, metrics)
            started = _charge(state, "train_seconds" if callback.is_training else "other_seconds", started)
        _charge(state, "train_seconds", started)

    def after_evaluation(self, state: TrainingState) -> None:
        """Pass the event on."""
        for callback in self.callbacks:
            callback.after_evaluation(state)

    def after_log(self, state: TrainingState, record: Mapping[str, Any]) -> None:
        """Pass the event on."""
        for callback in self.callbacks:
            callback.after_log(state, record)

    def at_end(self, state: TrainingState) -> None:
        """Pass the event on."""
        for callback in self.callbacks:
            callback.at_end(state)


def _charge(state: TrainingState, account: str, since: float) -> float:
    """Add the time since then to one of the two clocks of ``state``; return the time now."""
    now = time.perf_counter()
    setattr(state, account, getattr(state, account) + now - since)
    return now
