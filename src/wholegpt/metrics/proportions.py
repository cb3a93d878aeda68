"""Intervals and tests of proportions: a bootstrap is too narrow near 0 and 1, and for few examples."""

import math
from statistics import NormalDist

import numpy as np
from jaxtyping import Bool, Real

from wholegpt.metrics.intervals import CONFIDENCE, Estimate

TAIL = (1 - CONFIDENCE) / 2
HALVINGS = 44
"""Bisections of an interval in the search for a quantile: 13 digits."""
PRECISION, MOST_TERMS = 1e-14, 100_000
"""Precision and maximum terms of the beta distribution's continued fraction."""


def proportion(right: float, count: float) -> Estimate:
    """Return ``right`` / ``count`` with the interval of Clopper and Pearson (1934), whose coverage is at
    least nominal.

    Its ends are quantiles of beta distributions: B(2.5%; k, n − k + 1) and B(97.5%; k + 1, n − k). For a
    count of 0 the value is NaN and the interval is [0, 1].
    """
    if not count:
        return Estimate(math.nan, 0.0, 1.0)
    wrong = count - right
    low = _beta_quantile(TAIL, right, wrong + 1) if right > 0 else 0.0
    high = _beta_quantile(1 - TAIL, right + 1, wrong) if wrong > 0 else 1.0
    return Estimate(right / count, low, high)


def clustered_proportion(right: Real[np.ndarray, " N"], counts: Real[np.ndarray, " N"]) -> Estimate:
    """Return ``proportion`` of Σ right / Σ counts if the examples of a cluster are correlated (Korn and
    Graubard 1998).

    The interval is that of n/d examples, where d is the variance between clusters over that of as many
    independent examples (at least 1). If the clusters do not show their correlation (there is one cluster, or
    all examples are right, or all wrong), each cluster counts as one example.
    """
    count = float(counts.sum())
    if not count:
        return proportion(0, 0)
    value, clusters = float(right.sum()) / count, int((counts > 0).sum())
    effective = float(clusters)
    if clusters > 1 and 0 < value < 1:
        residuals = right - value * counts
        variance = clusters / (clusters - 1) * float((residuals**2).sum()) / count**2
        effective = value * (1 - value) / variance if variance else count
        # Fewer clusters make their variance less certain: divide the normal quantile by Student's, both
        # squared.
        degrees = clusters - 1
        share = _beta_quantile(2 * TAIL, degrees / 2, 0.5)
        effective *= NormalDist().inv_cdf(1 - TAIL) ** 2 * share / (degrees * (1 - share))
        effective = min(count, max(effective, 1.0))
    return proportion(value * effective, effective)


def paired_difference(first: Bool[np.ndarray, " N"], second: Bool[np.ndarray, " N"]) -> Estimate:
    """Compute the share of true values in ``second`` minus that in ``first``, with the interval of Bonett and
    Price (2012).

    With b examples that only the first has right, c only the second, and b′ = (b + 1)/(n + 2), c′ likewise:
    c′ − b′ ± z·√((b′ + c′ − (c′ − b′)²)/(n + 2)).
    """
    count = len(first)
    lost, won = int((first & ~second).sum()), int((second & ~first).sum())
    b, c = (lost + 1) / (count + 2), (won + 1) / (count + 2)
    half = NormalDist().inv_cdf(1 - TAIL) * math.sqrt((b + c - (c - b) ** 2) / (count + 2))
    return Estimate((won - lost) / count, max(-1.0, c - b - half), min(1.0, c - b + half))


def mcnemar_p_value(first: Bool[np.ndarray, " N"], second: Bool[np.ndarray, " N"]) -> float:
    """Compute the probability that chance splits the discordant examples at least as unevenly (McNemar 1947).

    Exact and two-sided: 2·P(X ≤ min(b, c)), X binomial of b + c coin tosses, b and c as in
    ``paired_difference``.
    """
    lost, won = int((first & ~second).sum()), int((second & ~first).sum())
    # P(X ≤ k) of n coin tosses is the beta distribution's I(1/2; n − k, k + 1).
    fewer = min(lost, won)
    return min(1.0, 2 * _beta_cdf(0.5, lost + won - fewer, fewer + 1)) if lost != won else 1.0


def _beta_quantile(probability: float, a: float, b: float) -> float:
    """Return the quantile of the beta distribution for a probability, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if _beta_cdf(middle, a, b) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _beta_cdf(x: float, a: float, b: float) -> float:
    """Compute I(x; a, b) by its continued fraction if that converges fast, otherwise 1 − I(1 − x; b, a).

    DLMF 8.17.22; Lentz's method.
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta_cdf(1 - x, b, a)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    # 1 + d₁/(1 + d₂/(1 + …)), as a product of the ratios of successive convergents.
    value = above = 1.0
    below, m, ratio = 0.0, 0, math.inf
    while abs(ratio - 1) > PRECISION and m < MOST_TERMS:
        m += 1
        half = m // 2
        top = -(a + half) * (a + b + half) if m % 2 else half * (b - half)
        term = top * x / ((a + m - 1) * (a + m))
        below = 1 / (1 + term * below)
        above = 1 + term / above
        ratio = above * below
        value *= ratio
    return front / a / value
