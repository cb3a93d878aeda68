"""Size and cost of a model, predicted from its config alone."""

from dataclasses import dataclass

from wholegpt.checks import complete_model
from wholegpt.config import (
    AttentionKernel,
    Bias,
    Embeddings,
    FeedForward,
    ModelConfig,
    Norm,
    NormPlacement,
    Positions,
    QueryKeyNorm,
)
from wholegpt.model.blocked_attention import query_block

FLOAT32_BYTES = 4


@dataclass(frozen=True)
class ParameterCount:
    """How many numbers a model learns, by part."""

    embeddings: int
    """Token and position embeddings, and the output projection where it is a matrix of its own."""
    blocks: int
    """Attention, feed-forward and norms of all layers, with the final norm."""

    @property
    def total(self) -> int:
        """All of them; a tied matrix counts once."""
        return self.embeddings + self.blocks


def parameter_count(config: ModelConfig) -> ParameterCount:
    """The number of parameters of ``Transformer(config)``."""
    c = complete_model(config)
    bias, norm_vectors = int(c.bias is Bias.all), 2 if c.norm is Norm.layer_norm else 1

    def linear(inputs: int, outputs: int) -> int:
        return inputs * outputs + bias * outputs

    attention = linear(c.d_model, (c.n_heads + 2 * c.n_kv_heads) * c.d_head)
    attention += linear(c.n_heads * c.d_head, c.d_model)
    if c.query_key_norm is QueryKeyNorm.rms_norm:
        attention += 2 * c.d_head
    inward = 2 if c.feed_forward is FeedForward.swiglu else 1
    feed_forward = inward * linear(c.d_model, c.d_ff) + linear(c.d_ff, c.d_model)
    norm = norm_vectors * c.d_model
    final_norm = norm if c.norm_placement is NormPlacement.pre else 0
    matrices = 1 if c.embeddings is Embeddings.tied else 2
    positions = c.context_length if c.positions is Positions.learned else 0
    return ParameterCount(
        embeddings=(matrices * c.vocab_size + positions) * c.d_model,
        blocks=c.n_layers * (attention + feed_forward + 2 * norm) + final_norm,
    )


def flops_per_token(config: ModelConfig) -> int:
    """Floating-point operations of the forward pass, a token, in a full window of τ tokens.

    Counts the matrix products only, a multiplication and an addition as two: 2·(entries of the
    weight matrices, the output projection included) + 4·L·H·K·τ for Q·Kᵀ and the weighted sum, in
    which a causal model that skips nothing computes all τ keys. Training costs three times as much
    (Kaplan et al. 2020, section 2.1): about 6·N + 12·L·D·τ.
    """
    c = complete_model(config)
    inward = 2 if c.feed_forward is FeedForward.swiglu else 1
    attention = c.d_model * (2 * c.n_heads + 2 * c.n_kv_heads) * c.d_head
    feed_forward = (inward + 1) * c.d_model * c.d_ff
    matrices = c.n_layers * (attention + feed_forward) + c.vocab_size * c.d_model
    return 2 * matrices + 4 * c.n_layers * c.n_heads * c.d_head * c.context_length


def training_memory_bytes(config: ModelConfig) -> int:
    """Bytes of weights, gradients and AdamW's two moments in float32: 16 a parameter. Activations come on top."""
    return 4 * FLOAT32_BYTES * parameter_count(config).total


def saved_activations(config: ModelConfig, kernel: AttentionKernel) -> int:
    """Numbers that the forward pass of a training step keeps for the backward pass, a token, in a full window.

    In the number format of the products. By layer: the residual stream before each norm and after it, what
    enters and leaves attention and its weights, what enters and leaves the activation of the feed-forward
    layer, and where there is dropout one mask for each place. The fused kernel keeps no weights.
    """
    c = complete_model(config)
    dropped = c.dropout > 0
    heads, width = c.n_heads * c.d_head, (c.n_heads + 2 * c.n_kv_heads) * c.d_head
    attention = 4 * heads
    if c.query_key_norm is QueryKeyNorm.rms_norm:
        attention += width
    weights = c.n_heads * mean_keys(c.context_length, kernel)
    if kernel is not AttentionKernel.fused:
        attention += (1 + dropped) * weights
    feed_forward = (4 if c.feed_forward is FeedForward.swiglu else 2) * c.d_ff
    block = (4 + 2 * dropped) * c.d_model + attention + feed_forward
    return c.n_layers * block + (2 + dropped) * c.d_model


def mean_keys(context_length: int, kernel: AttentionKernel) -> int:
    """Keys whose weights are computed for a query, on average over a window."""
    if kernel is not AttentionKernel.blocked:
        return context_length
    block = query_block(context_length)
    starts = range(0, context_length, block)
    ends = [min(start + block, context_length) for start in starts]
    return sum((end - start) * end for start, end in zip(starts, ends, strict=True)) // context_length
