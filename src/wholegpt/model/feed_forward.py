"""Feed-forward layers (E6). Shapes: B batch, T positions, D model width, F feed-forward width."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from wholegpt.config import Bias, FeedForward, ModelConfig
from wholegpt.model.linear import Linear


class GELUFeedForward(nn.Module):
    """W₂·GELU(W₁x + b₁) + b₂ (E6), with GELU exact or by its tanh approximation."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        bias = config.bias is Bias.all
        self.approximate = "tanh" if config.feed_forward is FeedForward.gelu_tanh else "none"
        self.expand = Linear(config.d_model, config.d_ff, bias=bias)
        self.output = Linear(config.d_ff, config.d_model, bias=bias)

    def forward(self, stream: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """The layer's output at each position."""
        return self.output(F.gelu(self.expand(stream), approximate=self.approximate))


class SwiGLU(nn.Module):
    """W₂·(SiLU(W_g x) ⊙ W₁x): a gated feed-forward layer (Shazeer 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        bias = config.bias is Bias.all
        self.gate = Linear(config.d_model, config.d_ff, bias=bias)
        self.expand = Linear(config.d_model, config.d_ff, bias=bias)
        self.output = Linear(config.d_ff, config.d_model, bias=bias)

    def forward(self, stream: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """The layer's output at each position."""
        return self.output(F.silu(self.gate(stream)) * self.expand(stream))


def make_feed_forward(config: ModelConfig) -> nn.Module:
    """The layer that ``config.feed_forward`` names."""
    return SwiGLU(config) if config.feed_forward is FeedForward.swiglu else GELUFeedForward(config)
