"""Losses: pure functions of tensors."""

from wholegpt.losses.classification import balanced_weights, class_negative_log_likelihood, squared_error
from wholegpt.losses.divergence import kl_divergence
from wholegpt.losses.language_modeling import (
    IGNORED,
    linear_cross_entropy,
    negative_log_likelihood,
    token_log_probabilities,
)

__all__ = [
    "IGNORED",
    "balanced_weights",
    "class_negative_log_likelihood",
    "kl_divergence",
    "linear_cross_entropy",
    "negative_log_likelihood",
    "squared_error",
    "token_log_probabilities",
]
