"""Metrics against reference packages, closed forms, and values calculated by hand."""

import math
import warnings
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st

from wholegpt.metrics import (
    bleu,
    bleu_counts,
    bootstrap,
    bootstrap_counts,
    bootstrap_ratio,
    confusion_matrix,
    f1,
    f1_macro,
    matthews_correlation,
    paired_p_value,
    pearson_correlation,
    rouge,
    spearman_correlation,
)

TRUTH, PREDICTED = np.array([0, 0, 1, 1, 1, 2, 2, 0]), np.array([0, 1, 1, 1, 0, 2, 2, 0])


def test_classification_by_hand() -> None:
    confusion = confusion_matrix(TRUTH, PREDICTED, 3)
    assert confusion.tolist() == [[2, 1, 0], [1, 2, 0], [0, 0, 2]]
    # First class: 2 true positives, 1 false positive, 1 false negative; second class: the same; third class: 2, 0, 0.
    assert f1(confusion).tolist() == pytest.approx([4 / 6, 4 / 6, 1])
    assert float(f1_macro(confusion)) == pytest.approx((4 / 6 + 4 / 6 + 1) / 3)


def test_matthews_by_its_formula() -> None:
    tp, tn, fp, fn = 4, 2, 1, 1
    expected = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert float(matthews_correlation(np.array([[tp, fn], [fp, tn]]))) == pytest.approx(expected)
    assert float(matthews_correlation(np.array([[2, 0], [0, 0]]))) == 0


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_classification_metrics_equal_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    """Including classes without examples or without predictions."""
    truth, predicted = np.array(pairs).T
    confusion = confusion_matrix(truth, predicted, 4)
    known: Any = {"average": None, "labels": range(4), "zero_division": np.nan}
    np.testing.assert_allclose(f1(confusion), sklearn.metrics.f1_score(truth, predicted, **known))
    macro = sklearn.metrics.f1_score(truth, predicted, average="macro")
    assert float(f1_macro(confusion)) == pytest.approx(macro)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a single class
        expected = sklearn.metrics.matthews_corrcoef(truth, predicted)
    assert float(matthews_correlation(confusion)) == pytest.approx(expected)


def test_bootstrap_of_counts_equals_bootstrap_of_examples() -> None:
    """The quantiles agree up to the noise of a thousand resamples."""
    generator = np.random.default_rng(0)
    truth, predicted = generator.integers(0, 3, size=(2, 300))
    predicted = np.where(generator.random(300) < 0.5, truth, predicted)
    fast = bootstrap_counts(confusion_matrix(truth, predicted, 3), f1_macro)
    plain = bootstrap(300, lambda rows: float(f1_macro(confusion_matrix(truth[rows], predicted[rows], 3))))
    assert fast.value == plain.value
    assert (fast.low, fast.high) == pytest.approx((plain.low, plain.high), abs=0.01)


def test_correlations_by_their_formulas() -> None:
    x, y = [1.0, 2.0, 4.0, 7.0, 3.0], [2.0, 1.0, 5.0, 6.0, 9.0]
    assert pearson_correlation(x, y) == pytest.approx(float(np.corrcoef(x, y)[0, 1]))
    ranks = [sorted(side).index for side in (x, y)]
    assert spearman_correlation(x, y) == pytest.approx(
        float(np.corrcoef([ranks[0](value) for value in x], [ranks[1](value) for value in y])[0, 1])
    )
    assert math.isnan(pearson_correlation([1.0, 1.0], [1.0, 2.0]))


GENERATED = ["the cat sat on the mat", "there is a dog in the garden now", "no"]
REFERENCES = [
    ["the cat is on the mat", "a cat sat on the mat"],
    ["a dog is in the garden"],
    ["yes", "no it is"],
]


def test_bleu_is_sacrebleus() -> None:
    import sacrebleu

    columns = [[some[index] if index < len(some) else None for some in REFERENCES] for index in range(2)]
    theirs = sacrebleu.corpus_bleu(GENERATED, columns)  # pyright: ignore[reportArgumentType]
    counts = np.array([bleu_counts(*pair) for pair in zip(GENERATED, REFERENCES, strict=True)])
    assert bleu(counts) == pytest.approx(theirs.score)
    same = bleu_counts("the same words are here", ["the same words are here"])
    assert bleu(same[None]) == pytest.approx(100)


def test_rouge_by_hand() -> None:
    # 6 of 8 and 6 unigrams match; of 7 and 5 bigrams "a dog", "in the", "the garden"; longest: "a dog in the garden".
    assert rouge(GENERATED[1], REFERENCES[1]) == pytest.approx(
        {"rouge1": 2 * 6 / (8 + 6), "rouge2": 2 * 3 / (7 + 5), "rougeL": 2 * 5 / (8 + 6)}
    )
    # The best reference counts.
    assert rouge(GENERATED[0], REFERENCES[0]) == rouge(GENERATED[0], REFERENCES[0][1:])


def test_interval_of_a_mean_is_the_normal_one() -> None:
    values = np.random.default_rng(3).normal(size=2000)
    estimate = bootstrap_ratio(values, np.ones(2000))
    half = 1.96 * values.std() / math.sqrt(2000)
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.1 * half)
    other = bootstrap(2000, lambda rows: float(values[rows].mean()))
    assert other.low == pytest.approx(estimate.low, abs=0.15 * half)


def test_interval_has_its_nominal_coverage() -> None:
    generator = np.random.default_rng(5)
    covered = 0
    for seed in range(200):
        estimate = bootstrap_ratio(generator.exponential(size=200), np.ones(200), seed)
        covered += estimate.low <= 1 <= estimate.high
    assert 0.89 <= covered / 200 <= 0.99


def test_ratio_keeps_numerators_with_their_denominators() -> None:
    weights = np.array([1.0, 10.0, 100.0, 1000.0])
    estimate = bootstrap_ratio(3 * weights, weights)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((3, 3, 3))


def test_p_values() -> None:
    generator = np.random.default_rng(1)
    assert paired_p_value(np.ones(30)) == pytest.approx(1 / 10_001)
    assert paired_p_value(np.array([1.0, -1.0] * 10)) == 1
    # 2 of 2⁵ sign assignments are as far from 0 as five equal differences.
    assert paired_p_value(np.ones(5)) == pytest.approx(2 / 32, abs=0.01)
    under_chance = [paired_p_value(generator.normal(size=40), seed) for seed in range(100)]
    assert 0.01 <= np.mean(np.array(under_chance) < 0.1) <= 0.2


def test_undefined_metrics_are_null_in_json() -> None:
    estimate = bootstrap_ratio(np.zeros(3), np.zeros(3))
    assert estimate.to_json() == {"value": None, "low": None, "high": None}
