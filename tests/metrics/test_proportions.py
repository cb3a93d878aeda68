"""Confidence intervals of proportions have their nominal coverage, and the paired tests their nominal level."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from wholegpt.evaluation.comparison import ALPHA, Difference, compare_tasks
from wholegpt.evaluation.examples import means_of
from wholegpt.evaluation.task import TaskScore
from wholegpt.metrics import (
    bootstrap_ratio,
    clustered_proportion,
    mcnemar_p_value,
    paired_difference,
    paired_p_value,
    proportion,
)


@pytest.mark.parametrize("count", [1, 2, 7, 20, 333, 100_000])
def test_interval_equals_scipy(count: int) -> None:
    for right in sorted({0, 1, count // 3, count // 2, count - 1, count}):
        ours, theirs = proportion(right, count), binomtest(right, count).proportion_ci(method="exact")
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
        assert ours.value == right / count


def test_degenerate_proportions() -> None:
    nothing = proportion(0, 0)
    assert math.isnan(nothing.value) and (nothing.low, nothing.high) == (0, 1)
    assert (proportion(0, 1).low, proportion(0, 1).high) == pytest.approx((0, 0.975))
    assert (proportion(1, 1).low, proportion(1, 1).high) == pytest.approx((0.025, 1))
    assert proportion(20, 20).low == pytest.approx(0.025 ** (1 / 20))
    assert proportion(0, 20).high == pytest.approx(1 - 0.025 ** (1 / 20))


def coverage(interval: Any, count: int, share: float) -> float:
    """Return the total probability of the counts whose interval contains the true share."""
    held = [right for right in range(count + 1) if (e := interval(right, count)).low <= share <= e.high]
    return float(binom.pmf(held, count, share).sum())


@pytest.mark.parametrize("count", [20, 50, 200])
@pytest.mark.parametrize("share", [0.5, 0.95, 0.99])
def test_accuracy_interval_has_its_nominal_coverage(count: int, share: float) -> None:
    """Computed from the records of an evaluation, for every number of correct answers."""

    def accuracy(right: int, count: int) -> Any:
        records = [{"correct": number < right} for number in range(count)]
        return means_of(records, {"accuracy": "correct"})["accuracy"]

    assert coverage(accuracy, count, share) >= 0.95


def test_bootstrap_interval_of_a_proportion_has_too_little_coverage() -> None:
    """This is why proportions are not bootstrapped."""

    def bootstrapped(right: int, count: int) -> Any:
        return bootstrap_ratio((np.arange(count) < right).astype(float), np.ones(count))

    assert coverage(bootstrapped, 20, 0.95) < 0.7


@pytest.mark.parametrize(("share", "alike"), [(0.5, 0.02), (0.9, 0.1)])
def test_clustered_interval_has_its_nominal_coverage(share: float, alike: float) -> None:
    """The tokens of a window are correlated; treating them as independent gives too little coverage."""
    generator = np.random.default_rng(7)
    covered, naive, rounds = 0, 0, 200
    masked_tokens = np.full(40, 20.0)
    for _ in range(rounds):
        of_window = generator.beta(share * (1 - alike) / alike, (1 - share) * (1 - alike) / alike, 40)
        right = generator.binomial(20, of_window).astype(float)
        one = clustered_proportion(right, masked_tokens)
        covered += one.low <= share <= one.high
        plain = proportion(right.sum(), masked_tokens.sum())
        naive += plain.low <= share <= plain.high
    assert covered / rounds >= 0.95 - 2.6 * math.sqrt(0.95 * 0.05 / rounds)
    assert naive < covered


def test_clusters_without_variation() -> None:
    """With one window, or if all are correct, the correlation is unknown: each window counts as one observation."""
    one = clustered_proportion(np.array([15.0]), np.array([20.0]))
    assert one.value == 0.75 and one.high - one.low > 0.9
    right = clustered_proportion(np.full(20, 30.0), np.full(20, 30.0))
    assert (right.value, right.low) == (1, pytest.approx(proportion(20, 20).low))
    assert math.isnan(clustered_proportion(np.zeros(3), np.zeros(3)).value)
    single = np.ones(50)
    spread = np.array([1.0, 0.0] * 25)
    assert clustered_proportion(spread, single).low == pytest.approx(proportion(25, 50).low, abs=0.01)


def test_mcnemar_equals_the_binomial_test() -> None:
    for lost, won in ((0, 0), (0, 5), (0, 6), (3, 12), (7, 8), (40, 70)):
        first = np.array([True] * lost + [False] * won + [True] * 9)
        second = np.array([False] * lost + [True] * won + [True] * 9)
        expected = binomtest(won, lost + won).pvalue if lost + won else 1.0
        assert mcnemar_p_value(first, second) == pytest.approx(expected)


def test_difference_of_proportions_by_hand() -> None:
    """b = 1, c = 4 of n = 20: b′ = 2/22, c′ = 5/22."""
    first = np.array([True] + [False] * 4 + [True] * 15)
    second = np.array([False] + [True] * 4 + [True] * 15)
    found = paired_difference(first, second)
    half = 1.959964 * math.sqrt((7 / 22 - (3 / 22) ** 2) / 22)
    assert (found.value, found.low, found.high) == pytest.approx((0.15, 3 / 22 - half, 3 / 22 + half))
    same = paired_difference(first, first)
    assert same.value == 0 and same.low < -0.05 and same.high > 0.05


def test_interval_of_a_difference_has_its_nominal_coverage() -> None:
    generator = np.random.default_rng(3)
    for count, shares in ((20, (0.95, 0.9)), (50, (0.8, 0.6))):
        covered, rounds = 0, 500
        for _ in range(rounds):
            first, second = (generator.random(count) < share for share in shares)
            found = paired_difference(first, second)
            covered += found.low <= shares[1] - shares[0] <= found.high
        assert covered / rounds >= 0.95 - 2.6 * math.sqrt(0.95 * 0.05 / rounds)


def compared(first: Sequence[Any], second: Sequence[Any]) -> Difference:
    """Compare two models whose examples have these values."""
    scores = [
        TaskScore(
            "task", len(side), 0, {}, {"x": "x"}, 0, [{"line": i, "x": one} for i, one in enumerate(side)]
        )
        for side in (first, second)
    ]
    return compare_tasks(*scores)["x"]


@pytest.mark.parametrize(
    ("metric", "count"),
    [
        *(("accuracy", count) for count in (10, 20, 50)),
        *(("loss", count) for count in (10, 20, 50)),
        ("heavy-tailed loss", 10),
    ],
)
def test_equal_models_rarely_differ_significantly(metric: str, count: int) -> None:
    """In at most 5% of 300 simulations, plus three standard errors."""
    generator = np.random.default_rng(11)
    called, rounds = 0, 300
    for _ in range(rounds):
        if metric == "accuracy":
            sides = [(generator.random(count) < 0.7).tolist() for _ in range(2)]
        elif metric == "loss":
            sides = [generator.normal(2, 1, count).tolist() for _ in range(2)]
        else:
            sides = [generator.exponential(1, count).tolist() for _ in range(2)]
        called += compared(*sides).better != "uncertain"
    assert called / rounds <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / rounds)


def test_difference_is_significant_by_its_p_value() -> None:
    """Five of five is not significant (p = 1/16), six of six is (p = 1/32), and a NaN loss never is."""
    for count, better in ((5, "uncertain"), (6, "second")):
        one = compared([False] * count, [True] * count)
        assert one.better == better and one.test == "McNemar"
        assert one.p_value == pytest.approx(2 * 0.5**count) and (one.p_value < ALPHA) == (better == "second")
    assert compared([1.0] * 6, [2.0] * 6).test == "random signs"
    broken = compared([1.0, 2.0], [1.0, math.nan])
    assert broken.better == "uncertain" and broken.to_json()["p_value"] is None
    assert math.isnan(paired_p_value(np.array([math.inf, 1.0])))


def test_bootstrap_of_one_example_has_no_interval() -> None:
    one = bootstrap_ratio(np.array([2.0]), np.ones(1))
    assert one.value == 2 and one.to_json()["low"] is None and one.to_json()["high"] is None
