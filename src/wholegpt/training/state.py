"""The counters of a run. With the weights and the optimizer's moments they are all that resuming needs."""

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
    """A factor of the loss, by which gradients are divided again, so that small gradients do not underflow in float16.

    It is halved when a gradient overflows (that step is skipped), and doubled after 1,000 steps without an overflow
    (Micikevicius et al. 2018, section 3.2).
    """

    value: float = 2.0**16
    good_steps: int = 0
    """Steps without an overflow since the last change."""

    DOUBLED_AFTER: ClassVar[int] = 1000

    def after(self, overflowed: bool) -> "LossScale":
        """Return the scale of the next step."""
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
    """Optimizer steps done."""
    tokens: int = 0
    """Tokens trained on."""
    train_seconds: float = 0.0
    """Wall clock of the optimizer steps, without evaluation, samples and saving."""
    other_seconds: float = 0.0
    """Wall clock of evaluation, samples and saving."""
    best: Best | None = None
    last_validation: dict[str, Any] | None = None
    evaluations_since_best: int = 0
    loss_scale: LossScale = field(default_factory=LossScale)
    """Used in float16 only."""
    stop_reason: str = ""
    """Why the run ended before its last step; empty otherwise."""

    def to_json(self) -> dict[str, Any]:
        """Return the state as plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "TrainingState":
        """Return the state that ``to_json`` wrote. Raises ``CheckpointError`` for anything else."""
        try:
            return msgspec.convert(value, cls)
        except msgspec.ValidationError as error:
            raise CheckpointError(f"the state of the training is damaged: {error}") from None
