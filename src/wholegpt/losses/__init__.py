"""Losses: pure functions of tensors."""

from wholegpt.losses.classification import balanced_weights, class_negative_log_likelihood, squared_error
from wholegpt.losses.divergence import kl_divergence
from wholegpt.losses.language_modeling import (
    IGNORED,
    linear_cross_entropy,
    negative_log_likelihood,
    token_log_probabilities,
)
from wholegpt.losses.policy import (
    clipped_policy_loss,
    clipped_value_loss,
    generalized_advantages,
    group_advantages,
    kl_estimate_1,
    kl_estimate_2,
    kl_estimate_3,
    token_weights,
    whitened,
)
from wholegpt.losses.preference import bradley_terry, dpo_loss, ipo_loss, kto_loss, orpo_loss, simpo_loss

__all__ = [
    "IGNORED",
    "balanced_weights",
    "bradley_terry",
    "class_negative_log_likelihood",
    "clipped_policy_loss",
    "clipped_value_loss",
    "dpo_loss",
    "generalized_advantages",
    "group_advantages",
    "ipo_loss",
    "kl_divergence",
    "kl_estimate_1",
    "kl_estimate_2",
    "kl_estimate_3",
    "kto_loss",
    "linear_cross_entropy",
    "negative_log_likelihood",
    "orpo_loss",
    "simpo_loss",
    "squared_error",
    "token_log_probabilities",
    "token_weights",
    "whitened",
]
