"""Feed-forward layers (E6). Shapes: B batch, T positions, D model width, F feed-forward width."""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from wholegpt.model.layers.linear import Linear
from wholegpt.settings.choices import Bias, FeedForward
from wholegpt.settings.schema import ModelConfig


def relu_squared(x: Float[Tensor, "*B F"]) -> Float[Tensor, "*B F"]:
    """Compute max(x, 0)² (So et al. 2021)."""
    return F.relu(x).square()


ACTIVATIONS: dict[FeedForward, Callable[[Tensor], Tensor]] = {
    FeedForward.gelu: F.gelu,
    FeedForward.gelu_tanh: partial(F.gelu, approximate="tanh"),
    FeedForward.relu: F.relu,
    FeedForward.relu_squared: relu_squared,
    FeedForward.swiglu: F.silu,
}
"""The activation of a layer, or of its gate."""


class TwoLayer(nn.Module):
    """W₂·a(W₁x + b₁) + b₂ (E6), where a is GELU, exact or by its tanh approximation, ReLU or its square."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        bias = config.bias is Bias.all
        self.activation = ACTIVATIONS[config.feed_forward]
        self.expand = Linear(config.d_model, config.d_ff, bias=bias)
        self.output = Linear(config.d_ff, config.d_model, bias=bias)

    def forward(self, stream: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Return the layer's output at each position."""
        return self.output(self.activation(self.expand(stream)))


class SwiGLU(nn.Module):
    """W₂·(SiLU(W_g x) ⊙ W₁x): a gated feed-forward layer (Shazeer 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        bias = config.bias is Bias.all
        self.gate = Linear(config.d_model, config.d_ff, bias=bias)
        self.expand = Linear(config.d_model, config.d_ff, bias=bias)
        self.output = Linear(config.d_ff, config.d_model, bias=bias)

    def forward(self, stream: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Return the layer's output at each position."""
        return self.output(F.silu(self.gate(stream)) * self.expand(stream))
