"""Losses: pure functions of tensors."""

from wholegpt.losses.language_modeling import IGNORED, linear_cross_entropy, negative_log_likelihood

__all__ = ["IGNORED", "linear_cross_entropy", "negative_log_likelihood"]
