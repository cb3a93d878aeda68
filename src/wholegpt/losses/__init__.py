"""Losses: pure functions of tensors."""

from wholegpt.losses.language_modeling import IGNORED, negative_log_likelihood

__all__ = ["IGNORED", "negative_log_likelihood"]
