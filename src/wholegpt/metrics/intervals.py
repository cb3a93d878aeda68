"""Bootstrap intervals (Efron 1979), and the paired randomization test of two models on the same examples.

Proportions have exact intervals (``proportions``).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Real

RESAMPLES = 1000
CONFIDENCE = 0.95
Statistic = Callable[[Int[np.ndarray, " N"]], float]
"""A statistic of the examples at these indices, which may repeat."""


@dataclass(frozen=True)
class Estimate:
    """An estimate with its 95% interval."""

    value: float
    low: float
    high: float

    def mapped(self, rising: Callable[[float], float]) -> "Estimate":
        """Return the estimate of an increasing function of the value."""
        return Estimate(rising(self.value), rising(self.low), rising(self.high))

    def to_json(self) -> dict[str, float | None]:
        """Return plain values; ``None`` for NaN."""
        return {name: x if np.isfinite(x) else None for name, x in vars(self).items()}


def bootstrap(n_examples: int, statistic: Statistic, seed: int = 0) -> Estimate:
    """Compute ``statistic`` of all examples, and its 2.5% and 97.5% quantiles over resamples with
    replacement.
    """
    generator = np.random.default_rng(seed)
    resampled = [statistic(generator.integers(n_examples, size=n_examples)) for _ in range(RESAMPLES)]
    low, high = _quantiles(np.array(resampled), n_examples)
    return Estimate(statistic(np.arange(n_examples)), low, high)


def bootstrap_counts(
    counts: Int[np.ndarray, "O O"],
    statistic: Callable[[np.ndarray], np.ndarray],
    seed: int = 0,
) -> Estimate:
    """Compute ``bootstrap`` of a function of confusion matrices, for all resamples at once."""
    n_examples = int(counts.sum())
    drawn = np.random.default_rng(seed).multinomial(n_examples, counts.ravel() / n_examples, RESAMPLES)
    low, high = _quantiles(statistic(drawn.reshape(RESAMPLES, *counts.shape)), n_examples)
    return Estimate(float(statistic(counts)), low, high)


def bootstrap_ratio(
    numerators: Real[np.ndarray, " N"], denominators: Real[np.ndarray, " N"], seed: int = 0
) -> Estimate:
    """Compute ``bootstrap`` of Σ numerators / Σ denominators; a mean if the denominators are 1."""
    n_examples = len(numerators)
    counts = np.random.default_rng(seed).multinomial(
        n_examples, np.full(n_examples, 1 / n_examples), RESAMPLES
    )
    below = counts @ denominators
    resampled = np.divide(counts @ numerators, below, out=np.full(RESAMPLES, np.nan), where=below > 0)
    low, high = _quantiles(resampled, n_examples)
    whole = float(denominators.sum())
    return Estimate(float(numerators.sum()) / whole if whole else np.nan, low, high)


def paired_p_value(differences: Real[np.ndarray, " N"], seed: int = 0) -> float:
    """Compute the probability of a mean at least as far from 0 under random signs of the differences (Fisher
    1935).

    Two-sided, from 10,000 random assignments plus the observed one; NaN if a difference is not finite.
    """
    if not np.isfinite(differences).all():
        return np.nan
    generator, resamples = np.random.default_rng(seed), 10_000
    observed = abs(float(differences.sum()))
    as_far = 1
    for _ in range(resamples // 100):
        kept = generator.integers(0, 2, size=(100, len(differences)), dtype=np.int8)
        sums = 2 * (kept @ differences) - differences.sum()
        as_far += int((np.abs(sums) >= observed * (1 - 1e-12)).sum())
    return as_far / (resamples + 1)


def _quantiles(values: Float[np.ndarray, " R"], n_examples: int) -> tuple[float, float]:
    """Return the quantiles; NaN if the resamples have no information: all those of a single example are the
    same.
    """
    known = values[np.isfinite(values)]
    if not len(known) or n_examples < 2:
        return np.nan, np.nan
    tail = (1 - CONFIDENCE) / 2
    return float(np.quantile(known, tail)), float(np.quantile(known, 1 - tail))
