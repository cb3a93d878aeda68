"""Divergences between distributions over the vocabulary. Shapes: N positions, V vocabulary."""

from jaxtyping import Float
from torch import Tensor

from wholegpt.runtime import at_least_float32


def kl_divergence(
    logits: Float[Tensor, "N V"], reference_logits: Float[Tensor, "N V"]
) -> Float[Tensor, " N"]:
    """Return KL(p‖q) = Σ_v p_v·(ln p_v − ln q_v) in nats, where p and q are the softmax of both logits.

    Computed in at least 32 bits (Kullback and Leibler 1951).
    """
    log_p, log_q = (at_least_float32(one).log_softmax(dim=-1) for one in (logits, reference_logits))
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)
