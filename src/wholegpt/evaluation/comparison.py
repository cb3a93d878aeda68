"""Two models on the same examples: by how much one is better, and whether a paired test finds that significant."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from wholegpt.errors import ConfigError
from wholegpt.evaluation.task import TaskScore
from wholegpt.evaluation.text import TextEvaluation
from wholegpt.metrics import (
    Estimate,
    bootstrap,
    bootstrap_ratio,
    mcnemar_p_value,
    nats_to_bits,
    paired_difference,
    paired_p_value,
)

ALPHA = 0.05
"""Level of significance: where two models are equally good, one is called better in at most so many cases."""
LESS_IS_BETTER = ("nats", "squared_error", "empty")
"""Fields of records; of all others more is better."""
RANDOM_SIGNS = "random signs"


@dataclass(frozen=True)
class Difference:
    """One figure of two models."""

    first: float
    second: float
    difference: Estimate
    """Second less first, with its interval: of proportions ``paired_difference``, else a bootstrap over the examples
    or the pieces of the text."""
    p_value: float
    """How often chance alone makes a difference as large."""
    test: str
    """How that is found: ``McNemar`` (exact) for proportions, else ``random signs`` of the examples' differences."""
    less_is_better: bool

    @property
    def better(self) -> str:
        """``first`` or ``second`` where the p-value is below ``ALPHA``, else ``uncertain``."""
        if not self.p_value < ALPHA:
            return "uncertain"
        return "second" if (self.difference.value < 0) == self.less_is_better else "first"

    def to_json(self) -> dict[str, Any]:
        """As plain values; ``None`` for what is not a number."""
        ends = self.difference.to_json()
        return {
            "first": self.first if math.isfinite(self.first) else None,
            "second": self.second if math.isfinite(self.second) else None,
            "difference": ends["value"],
            "difference_low": ends["low"],
            "difference_high": ends["high"],
            "p_value": self.p_value if math.isfinite(self.p_value) else None,
            "alpha": ALPHA,
            "test": self.test,
            "better": self.better,
        }


def compare_texts(first: TextEvaluation, second: TextEvaluation) -> dict[str, Difference]:
    """Bits per byte of two models on one text."""

    def difference(pieces: np.ndarray) -> float:
        one, other = (
            side.piece_nats[pieces].sum() / side.piece_bytes[pieces].sum() for side in (first, second)
        )
        return nats_to_bits(float(other - one))

    change = second.piece_nats / max(second.bytes, 1) - first.piece_nats / max(first.bytes, 1)
    return {
        "bits_per_byte": Difference(
            first.bits_per_byte,
            second.bits_per_byte,
            bootstrap(len(first.piece_nats), difference),
            paired_p_value(change),
            RANDOM_SIGNS,
            less_is_better=True,
        )
    }


def compare_tasks(first: TaskScore, second: TaskScore) -> dict[str, Difference]:
    """Every figure of two models on one file of examples that is a mean over the examples.

    Raises ``ConfigError`` where the examples scored are not the same.
    """
    if [r["line"] for r in first.records] != [r["line"] for r in second.records]:
        raise ConfigError("the two models were scored on different examples")
    return {name: _means(column, first, second) for name, column in first.means.items()}


def _means(column: str, first: TaskScore, second: TaskScore) -> Difference:
    one, other = (np.array([record[column] for record in score.records]) for score in (first, second))
    if one.dtype == bool:
        difference, p_value, test = paired_difference(one, other), mcnemar_p_value(one, other), "McNemar"
    else:
        change = other.astype(np.float64) - one
        difference, p_value, test = (
            bootstrap_ratio(change, np.ones(len(change))),
            paired_p_value(change),
            RANDOM_SIGNS,
        )
    less = column in LESS_IS_BETTER
    return Difference(float(one.mean()), float(other.mean()), difference, p_value, test, less)
