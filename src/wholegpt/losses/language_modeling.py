"""The pretraining objective (E8). Shapes: B batch, T positions, V vocabulary."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

IGNORED = -100
"""A target that is not scored."""


def negative_log_likelihood(
    logits: Float[Tensor, "B T V"], targets: Int[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """−ln p(target) at each position, in nats, in float32; 0 where the target is ``IGNORED``.

    E8 is the sum of these over an optimiser step, divided by the number of targets in that step.
    """
    precise = logits.float() if logits.dtype.itemsize < 4 else logits
    losses = F.cross_entropy(precise.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
    return losses.view_as(targets)
