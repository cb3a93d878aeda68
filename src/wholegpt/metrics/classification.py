"""How good predicted classes and scores are, by scikit-learn and SciPy.

Lists are of one prediction and one truth an example. A figure that is not defined, as a correlation with a
constant, is not a number.
"""

import math
import warnings
from collections.abc import Sequence

import numpy as np

Classes = Sequence[str] | np.ndarray
"""One of each example, by name or number; scikit-learn is faster with numbers."""


def accuracy(truth: Classes, predicted: Classes) -> float:
    """Share of the examples whose class is predicted."""
    return sum(a == b for a, b in zip(truth, predicted, strict=True)) / len(truth)


def f1_binary(truth: Classes, predicted: Classes, positive: str | int) -> float:
    """2·TP / (2·TP + FP + FN) of the class ``positive``; 0 where it is neither true nor predicted anywhere."""
    from sklearn.metrics import f1_score

    binary = [np.asarray(side) == positive for side in (truth, predicted)]
    return float(f1_score(*binary, zero_division=0.0))  # pyright: ignore[reportArgumentType]


def f1_macro(truth: Classes, predicted: Classes) -> float:
    """The mean of ``f1_binary`` over the classes that are true or predicted somewhere."""
    from sklearn.metrics import f1_score

    return float(f1_score(truth, predicted, average="macro", zero_division=0.0))  # pyright: ignore[reportArgumentType]


def matthews_correlation(truth: Classes, predicted: Classes) -> float:
    """Matthews correlation coefficient, for several classes as Gorodkin (2004) has it; 0 for a constant side."""
    from sklearn.metrics import matthews_corrcoef

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one class only
        return float(matthews_corrcoef(truth, predicted))


def pearson_correlation(truth: Sequence[float], predicted: Sequence[float]) -> float:
    """Covariance over the product of the standard deviations."""
    from scipy.stats import pearsonr

    return _of_varied(pearsonr, truth, predicted)


def spearman_correlation(truth: Sequence[float], predicted: Sequence[float]) -> float:
    """``pearson_correlation`` of the ranks."""
    from scipy.stats import spearmanr

    return _of_varied(spearmanr, truth, predicted)


def _of_varied(correlation: object, truth: Sequence[float], predicted: Sequence[float]) -> float:
    if len(set(truth)) < 2 or len(set(predicted)) < 2:
        return math.nan
    return float(correlation(truth, predicted).statistic)  # pyright: ignore[reportCallIssue]
