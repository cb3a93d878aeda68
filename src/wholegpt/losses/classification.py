"""Losses of tasks. Shapes: B examples, O classes, choices or outputs."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from wholegpt.runtime import at_least_float32


def class_negative_log_likelihood(
    logits: Float[Tensor, "B O"], classes: Int[Tensor, " B"], weights: Float[Tensor, " O"] | None = None
) -> Float[Tensor, " B"]:
    """Compute −w_c·ln p(c) of each example's class c, in nats; p is the softmax over classes or choices."""
    losses = F.cross_entropy(at_least_float32(logits), classes, reduction="none")
    return losses if weights is None else losses * weights[classes]


def squared_error(outputs: Float[Tensor, "B 1"], scores: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Compute (y − ŷ)² of each example."""
    return (outputs[:, 0].to(scores.dtype) - scores) ** 2


def balanced_weights(counts: Int[Tensor, " O"]) -> Float[Tensor, " O"]:
    """Compute w_c = N / (O·n_c): every class has the same total weight, and the mean over the N examples is
    1.
    """
    return counts.sum() / (len(counts) * counts.float())
