"""Compare two models on the same examples: the difference, its interval, and a paired significance test."""

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
"""Significance level: of two equally good models, one is called better with at most this probability."""
LESS_IS_BETTER = ("nats", "squared_error", "empty")
"""Fields of records for which less is better; for all others more is better."""
RANDOM_SIGNS = "random signs"


@dataclass(frozen=True)
class Difference:
    """The difference of one metric between two models."""

    first: float
    second: float
    difference: Estimate
    """Second minus first, with its interval: ``paired_difference`` for proportions, otherwise a bootstrap
    over the examples or the pieces of the text.
    """
    p_value: float
    """Probability of a difference at least as large by chance."""
    test: str
    """The test: ``McNemar`` (exact) for proportions, otherwise ``random signs`` of the examples' differences."""
    less_is_better: bool

    @property
    def better(self) -> str:
        """Return ``first`` or ``second`` if the p-value is below ``ALPHA``, else ``uncertain``."""
        if not self.p_value < ALPHA:
            return "uncertain"
        return "second" if (self.difference.value < 0) == self.less_is_better else "first"

    def to_json(self) -> dict[str, Any]:
        """Return plain values; ``None`` for NaN."""
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
    """Compare the bits per byte of two models on one text."""

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
    """Compare all metrics of two models on one file of examples that are means over the examples.

    Raises ``ConfigError`` if the scored examples differ.
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
