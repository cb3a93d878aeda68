"""The inputs and the result of planning: a text, a time, and what to train."""

import dataclasses
import math
import time
from dataclasses import dataclass
from typing import Any

from wholegpt.console import clock
from wholegpt.data import PreparedData
from wholegpt.model import parameter_count
from wholegpt.planning.scaling import COVERED_STEPS, Difficulty, Expectation
from wholegpt.settings.schema import Config
from wholegpt.settings.serialization import to_mapping


@dataclass(frozen=True)
class Text:
    """The properties of a text that planning requires."""

    train_tokens: float
    validation_tokens: int
    bytes_per_token: float
    """Bytes per token of the validation text."""
    vocab_size: int

    @classmethod
    def of(cls, data: PreparedData) -> "Text":
        """Return the properties of prepared data."""
        train, validation = data.manifest.train, data.manifest.validation
        per_token = validation.bytes / max(validation.tokens, 1)
        return cls(train.tokens, validation.tokens, per_token, data.manifest.vocab_size)


class Budget:
    """A time budget and its start, by default now."""

    def __init__(self, minutes: float, started: float | None = None) -> None:
        self.minutes = minutes
        self.started = time.monotonic() if started is None else started

    def spent(self) -> float:
        """Return the seconds of the budget that have passed."""
        return time.monotonic() - self.started


ENGLISH_PROSE = Text(train_tokens=math.inf, validation_tokens=400_000, bytes_per_token=3.61, vocab_size=4096)
"""An endless text like reviews, news and speeches, used if no text is named."""


@dataclass(frozen=True)
class Plan:
    """What will be trained, its duration and memory, and its expected result."""

    minutes: float
    """The requested time."""
    measured: bool
    """Whether speed was measured on this machine; otherwise it is predicted from a description."""
    config: Config
    seconds: float
    """Duration of the whole command: reading, measuring, training, evaluation, samples, saving."""
    train_seconds: float
    other_seconds: float
    """Time of evaluations, samples, checkpoints and the report."""
    step_seconds: float
    tokens: int
    epochs: float
    """Number of epochs over the training text."""
    peak_memory_bytes: int
    product_flops_per_second: float
    """FLOP/s of a large matrix product on the machine."""
    bits_per_byte: Expectation
    """Expected loss on the whole validation text after the last step."""
    difficulty: Difficulty
    """What the pilot measured on the text."""
    useful_minutes: float | None = None
    """Set if less time than requested is enough, because more does not help on this text."""
    notes: tuple[str, ...] = ()
    """Assumptions, and where the plan exceeds the measured range."""

    def to_json(self) -> dict[str, Any]:
        """Return the output of ``wholegpt plan --json``."""
        return {
            "minutes": self.minutes,
            "measured": self.measured,
            "seconds": self.seconds,
            "train_seconds": self.train_seconds,
            "other_seconds": self.other_seconds,
            "step_seconds": self.step_seconds,
            "steps": self.config.training.steps,
            "tokens": self.tokens,
            "epochs": self.epochs,
            "parameters": parameter_count(self.config.model).total,
            "peak_memory_bytes": self.peak_memory_bytes,
            "product_flops_per_second": self.product_flops_per_second,
            "bits_per_byte": dataclasses.asdict(self.bits_per_byte),
            "difficulty": dataclasses.asdict(self.difficulty),
            "useful_minutes": self.useful_minutes,
            "notes": list(self.notes),
            "config": to_mapping(self.config),
        }

    def describe(self) -> str:
        """Return the plan as a few lines of text."""
        model, training, loss = self.config.model, self.config.training, self.bits_per_byte
        basis = (
            "measured on this machine" if self.measured else "predicted from the description, not measured"
        )
        epochs = f"{self.epochs:.1f} epochs, " if self.epochs else ""
        lines = [
            f"plan for {self.minutes:g} minute{'s' * (self.minutes != 1)}, {basis}:",
            f"  model   {parameter_count(model).total:,} parameters: {model.n_layers} layers, {model.d_model} wide, "
            f"vocabulary of {model.vocab_size:,}" + (f", dropout {model.dropout:g}" if model.dropout else ""),
            f"  steps   {training.steps:,} of {training.batch_size} × {self.config.window_length} tokens: "
            f"{self.tokens:,} tokens, {epochs}{self.tokens / self.train_seconds:,.0f} tokens/s",
            f"  time    {clock(self.seconds)} in all, {clock(self.train_seconds)} of it training",
            f"  memory  about {self.peak_memory_bytes / 1e9:.2f} GB at most",
            f"  loss    above {loss.low:.3f} bits per byte on held-out text; fewer than {COVERED_STEPS} steps allow no "
            "closer forecast"
            if training.steps < COVERED_STEPS
            else f"  loss    {loss.expected:.3f} bits per byte on held-out text ({loss.low:.3f} to {loss.high:.3f})",
        ]
        if self.useful_minutes is not None:
            lines.append(f"  more than {self.useful_minutes:.1f} minutes would hardly help on this text")
        return "\n".join(lines + [f"  {note}" for note in self.notes])
