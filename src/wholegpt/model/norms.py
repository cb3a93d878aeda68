"""Normalisation layers."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from wholegpt.config import ModelConfig, Norm


class LayerNorm(nn.LayerNorm):
    """LN(x) = (x − mean(x)) / √(var(x) + ε) · γ + β, over the last dimension (Ba et al. 2016)."""


class RMSNorm(nn.RMSNorm):
    """RMSNorm(x) = x / √(mean(x²) + ε) · γ, over the last dimension (Zhang and Sennrich 2019)."""

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """``x`` normalised, in the number format of ``x``, which PyTorch's fused kernel asks of γ too."""
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


def make_norm(config: ModelConfig, width: int) -> nn.Module:
    """The normalisation that ``config.norm`` names, for vectors of ``width`` numbers."""
    if config.norm is Norm.layer_norm:
        return LayerNorm(width, eps=config.norm_epsilon)
    return RMSNorm(width, eps=config.norm_epsilon)
