"""One block of the transformer (E5). Shapes: B batch, T positions, D model width."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

from wholegpt.model.layers.attention import SelfAttention, SequenceContext
from wholegpt.model.layers.dropout import dropout
from wholegpt.model.layers.feed_forward import SwiGLU, TwoLayer
from wholegpt.model.layers.linear_attention import AverageAttention, LinearAttention
from wholegpt.model.layers.mixture_of_experts import MixtureOfExperts
from wholegpt.model.layers.norms import make_norm
from wholegpt.settings.choices import Attention, AttentionKernel, FeedForward, NormPlacement
from wholegpt.settings.schema import ModelConfig


def make_attention(config: ModelConfig, kernel: AttentionKernel) -> nn.Module:
    """Return the layer that ``config.attention`` names."""
    if config.attention is Attention.average:
        return AverageAttention(config)
    return (LinearAttention if config.attention is Attention.linear else SelfAttention)(config, kernel)


def make_feed_forward(config: ModelConfig) -> nn.Module:
    """Return the layer that ``config.feed_forward`` names, or a mixture of experts."""
    if config.n_experts:
        return MixtureOfExperts(config)
    return SwiGLU(config) if config.feed_forward is FeedForward.swiglu else TwoLayer(config)


class Block(nn.Module):
    """Attention, then a feed-forward layer, each added to the residual stream.

    Pre-norm:  h′ = h + Attn(LN(h));  h″ = h′ + FFN(LN(h′))   (E5; GPT-2)
    Post-norm: h′ = LN(h + Attn(h));  h″ = LN(h′ + FFN(h′))   (Vaswani et al. 2017; GPT-1)
    """

    def __init__(self, config: ModelConfig, kernel: AttentionKernel) -> None:
        super().__init__()
        self.placement = config.norm_placement
        self.attention_norm = make_norm(config, config.d_model)
        self.attention = make_attention(config, kernel)
        self.feed_forward_norm = make_norm(config, config.d_model)
        self.feed_forward = make_feed_forward(config)
        self.dropout = config.dropout

    def forward(
        self, stream: Float[Tensor, "B T D"], context: SequenceContext, layer: int
    ) -> Float[Tensor, "B T D"]:
        """Return the residual stream after this block; ``layer`` is the index into the cache."""
        stream = self.add(stream, self.attention_norm, lambda h: self.attention(h, context, layer))
        return self.add(stream, self.feed_forward_norm, self.feed_forward)

    def add(
        self, stream: Float[Tensor, "B T D"], norm: nn.Module, sublayer: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, "B T D"]:
        """Compute h + f(LN(h)), or LN(h + f(h))."""
        p = self.dropout if self.training else 0.0
        if self.placement is NormPlacement.pre:
            return stream + dropout(sublayer(norm(stream)), p)
        return norm(stream + dropout(sublayer(stream), p))
