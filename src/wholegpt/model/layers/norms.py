"""Normalization layers. Shapes: D width of the normalized vectors."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from wholegpt.settings.choices import Norm
from wholegpt.settings.schema import ModelConfig


class LayerNorm(nn.LayerNorm):
    """LN(x) = (x − mean(x)) / √(var(x) + ε) · γ + β, over the last dimension (Ba et al. 2016)."""


class RMSNorm(nn.RMSNorm):
    """RMSNorm(x) = x / √(mean(x²) + ε) · γ, over the last dimension (Zhang and Sennrich 2019)."""

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """Return ``x`` normalized, in the dtype of ``x``."""
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            assert self.eps is not None
            if not torch.is_grad_enabled():  # an autograd function costs more than the norm of one token
                return _normalized(x, self.weight, self.eps)[0]
            normalized = _CPURMSNorm.apply(x, self.weight, self.eps)
            assert isinstance(normalized, Tensor)
            return normalized
        # PyTorch's fused kernel requires γ in the dtype of x.
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


def _normalized(
    x: Float[Tensor, "*B D"], gain: Float[Tensor, " D"], epsilon: float
) -> tuple[Float[Tensor, "*B D"], Float[Tensor, "*B 1"]]:
    """Return x̂ ⊙ γ, with x̂ = r·x, and r = 1/√(mean(x²) + ε)."""
    precise = torch.promote_types(x.dtype, torch.float32)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=precise)
    inverse = (length.square() / x.shape[-1] + epsilon).rsqrt()
    return (x * inverse * gain).to(x.dtype), inverse


class _CPURMSNorm(torch.autograd.Function):
    """RMSNorm with half the memory traffic of PyTorch's implementation, which has no CPU kernel for the
    backward pass.

    With r = 1/√(mean(x²) + ε), x̂ = r·x and h = γ ⊙ ∂L/∂y:  ∂L/∂x = r·(h − x̂·mean(h ⊙ x̂)). This is
    LayerNorm's gradient at mean 0 except for its term −r·mean(h), which is added back to the result of
    LayerNorm's kernel.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "*B D"],
        gain: Float[Tensor, " D"],
        epsilon: float,
    ) -> Float[Tensor, "*B D"]:
        normalized, inverse = _normalized(x, gain, epsilon)
        ctx.save_for_backward(x, gain, inverse)
        return normalized

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Float[Tensor, "*B D"]
    ) -> tuple[Float[Tensor, "*B D"], Float[Tensor, " D"], None]:
        (gradient,) = gradients
        x, gain, inverse = ctx.saved_tensors
        precise = gain.to(inverse.dtype)
        of_x, of_gain, _ = torch.ops.aten.native_layer_norm_backward(
            gradient,
            x,
            (x.shape[-1],),
            torch.zeros_like(inverse),
            inverse,
            precise,
            None,
            [True, True, False],
        )
        mean = (gradient @ gain.to(gradient.dtype)).unsqueeze(-1) / x.shape[-1]
        return of_x.add_((mean * inverse).to(x.dtype)), of_gain.to(gain.dtype), None


def make_norm(config: ModelConfig, width: int) -> nn.Module:
    """Return the normalization that ``config.norm`` names, for vectors of ``width`` elements."""
    if config.norm is Norm.layer_norm:
        return LayerNorm(width, eps=config.norm_epsilon)
    return RMSNorm(width, eps=config.norm_epsilon)
