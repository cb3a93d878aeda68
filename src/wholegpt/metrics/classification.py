"""Metrics of predicted classes and scores.

Metrics of classes are functions of confusion matrices, one or many resampled ones at once: scikit-learn's
metrics take milliseconds each, and an interval needs a thousand (docs/decisions.md). Shapes: N examples, O
classes, R resamples.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Real


def confusion_matrix(
    truth: Int[np.ndarray, " N"], predicted: Int[np.ndarray, " N"], n_classes: int
) -> Int[np.ndarray, "O O"]:
    """Count how many examples of each class (rows) are predicted as each class (columns)."""
    cells = truth * n_classes + predicted
    return np.bincount(cells, minlength=n_classes**2).reshape(n_classes, n_classes)


def f1(confusion: Real[np.ndarray, "*R O O"]) -> Float[np.ndarray, "*R O"]:
    """Compute 2·TP / (2·TP + FP + FN) of each class; NaN for a class that is neither true nor predicted
    anywhere.
    """
    found = 2.0 * np.diagonal(confusion, axis1=-2, axis2=-1)
    named = confusion.sum(-1) + confusion.sum(-2)
    return np.divide(found, named, out=np.full(found.shape, np.nan), where=named > 0)


def f1_macro(confusion: Real[np.ndarray, "*R O O"]) -> Float[np.ndarray, "*R"]:
    """Compute the mean of ``f1`` over the classes that are true or predicted somewhere."""
    return np.asarray(np.nanmean(f1(confusion), axis=-1))


def matthews_correlation(confusion: Real[np.ndarray, "*R O O"]) -> Float[np.ndarray, "*R"]:
    """Compute (c·s − Σ tₖpₖ) / √((s² − Σ tₖ²)(s² − Σ pₖ²)); 0 if either side is constant (Gorodkin 2004).

    c of s examples are correct; tₖ are of class k and pₖ are predicted as class k.
    """
    exact = confusion.astype(float)
    right, true, predicted = np.trace(exact, axis1=-2, axis2=-1), exact.sum(-1), exact.sum(-2)
    count = true.sum(-1)
    above = right * count - (true * predicted).sum(-1)
    below = np.sqrt((count**2 - (true**2).sum(-1)) * (count**2 - (predicted**2).sum(-1)))
    return np.divide(above, below, out=np.zeros_like(below), where=below > 0)


def pearson_correlation(truth: Sequence[float], predicted: Sequence[float]) -> float:
    """Compute covariance over the product of the standard deviations with SciPy; NaN if either side is
    constant.
    """
    from scipy.stats import pearsonr

    return _of_varied(pearsonr, truth, predicted)


def spearman_correlation(truth: Sequence[float], predicted: Sequence[float]) -> float:
    """Compute ``pearson_correlation`` of the ranks."""
    from scipy.stats import spearmanr

    return _of_varied(spearmanr, truth, predicted)


def _of_varied(correlation: object, truth: Sequence[float], predicted: Sequence[float]) -> float:
    if len(set(truth)) < 2 or len(set(predicted)) < 2:
        return math.nan
    return float(correlation(truth, predicted).statistic)  # pyright: ignore[reportCallIssue]
