"""Two models on the same examples: by how much one is better, and whether that is certain."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from wholegpt.errors import ConfigError
from wholegpt.evaluation.task import TaskScore
from wholegpt.evaluation.text import TextEvaluation
from wholegpt.metrics import Estimate, bootstrap, bootstrap_ratio, nats_to_bits, paired_p_value

LESS_IS_BETTER = ("nats", "squared_error", "empty")
"""Fields of records; of all others more is better."""


@dataclass(frozen=True)
class Difference:
    """One figure of two models."""

    first: float
    second: float
    difference: Estimate
    """Second less first, with the interval of a bootstrap over examples, or pieces of the text."""
    p_value: float
    """How often chance alone makes a difference as large, by random signs of the examples' differences."""
    less_is_better: bool

    @property
    def better(self) -> str:
        """``first`` or ``second`` where the interval of the difference leaves out 0, else ``uncertain``."""
        if not (self.difference.low > 0 or self.difference.high < 0):
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
            "p_value": self.p_value,
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
            less_is_better=True,
        )
    }


def compare_tasks(first: TaskScore, second: TaskScore) -> dict[str, Difference]:
    """Every figure of two models on one file of examples that is a mean over the examples.

    Raises ``ConfigError`` where the examples scored are not the same.
    """
    if [r["line"] for r in first.records] != [r["line"] for r in second.records]:
        raise ConfigError("the two models were scored on different examples")
    compared: dict[str, Difference] = {}
    for name, column in first.means.items():
        one, other = (np.array([float(r[column]) for r in score.records]) for score in (first, second))
        difference = bootstrap_ratio(other - one, np.ones(len(one)))
        compared[name] = Difference(
            float(one.mean()),
            float(other.mean()),
            difference,
            paired_p_value(other - one),
            less_is_better=column in LESS_IS_BETTER,
        )
    return compared
