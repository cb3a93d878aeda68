"""Where a run stands. With the weights and the optimiser's moments this is all that resuming needs."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar

import msgspec

from wholegpt.errors import CheckpointError


@dataclass
class Best:
    """The best evaluation so far."""

    step: int
    validation: dict[str, Any]


@dataclass(frozen=True)
class LossScale:
    """What a loss is multiplied by, and its gradient divided by, so that float16 keeps small gradients.

    Halved where a gradient overflows (that step is skipped), doubled after 1,000 steps in which none
    did (Micikevicius et al. 2018, section 3.2).
    """

    value: float = 2.0**16
    good_steps: int = 0
    """Steps without an overflow since it last changed."""

    DOUBLED_AFTER: ClassVar[int] = 1000

    def after(self, overflowed: bool) -> "LossScale":
        """The scale of the next step."""
        if overflowed:
            return LossScale(self.value / 2)
        good_steps = self.good_steps + 1
        return (
            LossScale(2 * self.value)
            if good_steps == self.DOUBLED_AFTER
            else LossScale(self.value, good_steps)
        )


@dataclass
class TrainingState:
    """Counters of a run."""

    step: int = 0
    """Optimiser steps done."""
    tokens: int = 0
    """Tokens trained on."""
    train_seconds: float = 0.0
    """Wall clock inside optimiser steps; evaluation, samples and saving are not counted."""
    other_seconds: float = 0.0
    """Wall clock of what is not counted above: evaluation, samples, saving."""
    best: Best | None = None
    last_validation: dict[str, Any] | None = None
    evaluations_since_best: int = 0
    loss_scale: LossScale = field(default_factory=LossScale)
    """Used in float16 only."""
    stop_reason: str = ""
    """Why the run ended before its last step; empty while it has not."""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "TrainingState":
        """Back from ``to_json``. Raises ``CheckpointError`` for what is none."""
        try:
            return msgspec.convert(value, cls)
        except msgspec.ValidationError as error:
            raise CheckpointError(f"the state of the training is damaged: {error}") from None
