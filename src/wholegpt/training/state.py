"""Where a run stands. With the weights and the optimiser's moments this is all that resuming needs."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import msgspec


@dataclass
class Best:
    """The evaluation with the lowest validation loss."""

    step: int
    validation: dict[str, Any]


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
    stop_reason: str = ""
    """Why the run ended before its last step; empty while it has not."""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "TrainingState":
        """Back from ``to_json``."""
        return msgspec.convert(value, cls)
