"""Predict the size and the cost of a model from its config alone."""

from dataclasses import dataclass

from wholegpt.model.layers.attention import used_kernel
from wholegpt.model.layers.blocked_attention import query_block
from wholegpt.model.layers.linear_attention import CHUNK
from wholegpt.settings.choices import (
    Architecture,
    Attention,
    AttentionKernel,
    Bias,
    Embeddings,
    FeedForward,
    Norm,
    NormPlacement,
    Positions,
    QueryKeyNorm,
)
from wholegpt.settings.schema import ModelConfig
from wholegpt.settings.validation import TRANSFORMERS, WINDOWED, complete_model

FLOAT32_BYTES = 4
GATES = {Architecture.elman: 1, Architecture.gru: 3, Architecture.lstm: 4}
"""Number of gates: how many maps of the token, and of the state, each layer has."""


@dataclass(frozen=True)
class ParameterCount:
    """The number of parameters of a model, by part."""

    embeddings: int
    """Token and position embeddings, and the output projection if it is not tied."""
    blocks: int
    """Attention, feed-forward layers and norms of all layers, with the final norm."""
    unused: int
    """Parameters of the experts that a token is not routed to."""

    @property
    def total(self) -> int:
        """Return the number of all parameters; a tied matrix counts once."""
        return self.embeddings + self.blocks

    @property
    def active(self) -> int:
        """Return the number of parameters that the computation for one token uses."""
        return self.total - self.unused


def parameter_count(config: ModelConfig) -> ParameterCount:
    """Return the number of parameters of a model of ``config``.

    It is 0 for n-gram models, whose size depends on the text.
    """
    c = complete_model(config)
    if c.architecture not in TRANSFORMERS:
        return _recurrent_parameters(c)
    norm_vectors = 2 if c.norm is Norm.layer_norm else 1

    def linear(inputs: int, outputs: int, to_heads: bool = False) -> int:
        biased = c.bias is not Bias.none if to_heads else c.bias is Bias.all
        return (inputs + biased) * outputs

    attention = linear(c.d_model, projected_heads(c) * c.d_head, to_heads=True)
    attention += linear(c.n_heads * c.d_head, c.d_model)
    if c.query_key_norm is QueryKeyNorm.rms_norm and c.attention is not Attention.average:
        attention += 2 * c.d_head
    inward = 2 if c.feed_forward is FeedForward.swiglu else 1
    feed_forward = inward * linear(c.d_model, c.d_ff) + linear(c.d_ff, c.d_model)
    router = c.n_experts * c.d_model
    norm = norm_vectors * c.d_model
    final_norm = norm if c.norm_placement is NormPlacement.pre else 0
    matrices, distinct = 1 if c.embeddings is Embeddings.tied else 2, c.distinct_layers or c.n_layers
    positions = c.context_length if c.positions is Positions.learned else 0
    vectors, heading = positions + c.segments, 0
    if c.architecture is Architecture.encoder:  # the prediction layer, its norm, and a bias for each token
        heading = c.d_model * (c.d_model + 1) + norm + c.vocab_size
        heading += norm if c.norm_placement is NormPlacement.post else 0
    # each layer once in the encoder and once in the decoder, and cross-attention
    if c.architecture is Architecture.encoder_decoder:
        heads = c.n_heads * c.d_head
        cross = linear(c.d_model, 3 * heads, to_heads=True) + linear(heads, c.d_model) + norm
        heading = final_norm + distinct * (attention + feed_forward + 2 * norm + cross)
    return ParameterCount(
        embeddings=(matrices * c.vocab_size + vectors) * c.d_model,
        blocks=heading
        + distinct * (attention + router + (c.n_experts or 1) * feed_forward + 2 * norm)
        + final_norm,
        unused=distinct * (c.n_experts - c.experts_per_token) * feed_forward if c.n_experts else 0,
    )


def _recurrent_parameters(c: ModelConfig) -> ParameterCount:
    """Compute L · G · (2·D² + 2·D) for G gates, and the embeddings."""
    gates = GATES.get(c.architecture, 0)
    matrices = 1 if c.embeddings is Embeddings.tied else 2
    embeddings = matrices * c.vocab_size * c.d_model if gates else 0
    return ParameterCount(embeddings, c.n_layers * gates * 2 * c.d_model * (c.d_model + 1), 0)


def projected_heads(config: ModelConfig) -> int:
    """Return the number of heads of queries, keys and values that the input projection produces.

    Average attention has values only.
    """
    return config.n_heads + (0 if config.attention is Attention.average else 2 * config.n_kv_heads)


def flops_per_token(config: ModelConfig) -> int:
    """Compute the floating-point operations of the forward pass per token, in a full window of τ tokens.

    Only matrix products count, with a multiplication and an addition as two operations: 2·(entries of the
    weight matrices, the output projection included) + 4·L·H·K·τ for Q·Kᵀ and the weighted sum. A causal model
    that skips nothing computes all τ keys. Training costs three times as much (Kaplan et al. 2020, section
    2.1): about 6·N + 12·L·D·τ.

    Other kinds of attention replace τ: 2·W for a sliding window, 2·W + τ/W for strided attention. Linear
    attention takes 2·L·H·(C·(2·K + 1) + 2·K·(K + 1)) with chunks of C; average attention takes nothing. An
    encoder–decoder counts both stacks and cross-attention for every position. A recurrent network takes
    2·(2·L·G·D² + V·D) with G gates. A mixture of experts counts the router and the experts that a token is
    routed to; training takes capacity_factor times as many operations in the experts.
    """
    c = complete_model(config)
    if c.architecture not in TRANSFORMERS:
        gates = GATES.get(c.architecture, 0)
        return 2 * (2 * c.n_layers * gates * c.d_model + c.vocab_size) * c.d_model if gates else 0
    inward = 2 if c.feed_forward is FeedForward.swiglu else 1
    attention = c.d_model * (projected_heads(c) + c.n_heads) * c.d_head
    feed_forward = c.experts_per_token * (inward + 1) * c.d_model * c.d_ff + c.n_experts * c.d_model
    predicting = c.d_model**2 if c.architecture is Architecture.encoder else 0
    if c.architecture is Architecture.encoder_decoder:  # in training every position goes through both halves
        layer = 2 * (attention + feed_forward) + 4 * c.d_model * c.n_heads * c.d_head
        return 2 * (
            c.n_layers * layer + c.vocab_size * c.d_model
        ) + 3 * c.n_layers * c.n_heads * mixing_flops(c)
    matrices = c.n_layers * (attention + feed_forward) + c.vocab_size * c.d_model + predicting
    return 2 * matrices + c.n_layers * c.n_heads * mixing_flops(c)


def mixing_flops(config: ModelConfig) -> int:
    """Compute the forward FLOPs of one head of one layer per token, without its projections."""
    d_head, chunk = config.d_head, CHUNK
    match config.attention:
        case Attention.average:
            return 0
        case Attention.linear:
            return 2 * (chunk * (2 * d_head + 1) + 2 * d_head * (d_head + 1))
        case _:
            return 4 * d_head * scored_keys(config)


def scored_keys(config: ModelConfig) -> int:
    """Return how many keys are scored per query in a full window; sparse patterns skip the others."""
    tau, window = config.context_length, config.attention_window
    if config.attention not in WINDOWED:
        return tau
    return 2 * window + (-(-tau // window) if config.attention is Attention.strided else 0)


def training_memory_bytes(config: ModelConfig) -> int:
    """Return the bytes of weights, gradients and AdamW's two moments in float32: 16 per parameter.

    Activations are not included.
    """
    return 4 * FLOAT32_BYTES * parameter_count(config).total


def saved_activations(config: ModelConfig, kernel: AttentionKernel) -> int:
    """Compute how many activations per token a training step saves for the backward pass, in a full window.

    Activations have the compute dtype. Each layer saves the residual stream before and after each norm, the
    inputs, outputs and weights of attention, the input and output of the feed-forward activation, and one
    mask per dropout. The fused kernel saves no attention weights. An encoder–decoder saves both stacks,
    always with the plain kernel, and the cross-attention between the decoder's layers.
    """
    c = complete_model(config)
    dropped = c.dropout > 0
    if c.architecture is Architecture.ngram:
        return 0
    if c.architecture not in TRANSFORMERS:  # gates and states of each position, and the input
        return (
            c.n_layers * (GATES.get(c.architecture, 0) + 3 + dropped) * c.d_model + (2 + dropped) * c.d_model
        )
    both = c.architecture is Architecture.encoder_decoder
    attention = _saved_by_attention(c, used_kernel(c.architecture, kernel), dropped)
    inner = {FeedForward.swiglu: 4, FeedForward.relu: 1}  # the backward pass of ReLU needs its output only
    feed_forward = inner.get(c.feed_forward, 2) * c.d_ff
    if c.n_experts:  # inputs and outputs of the experts, for as many tokens as their capacity allows
        feed_forward += 2 * c.d_model
        feed_forward = round(c.capacity_factor * c.experts_per_token * feed_forward)
    block = (4 + 2 * dropped) * c.d_model + attention + feed_forward
    ends = (2 + dropped) * c.d_model
    if both:
        weights = c.n_heads * (1 + 2 * dropped) * c.context_length
        crossing = (2 + dropped) * c.d_model + 6 * c.n_heads * c.d_head + weights
        masks = 3 * c.context_length // 2  # one byte per key
        return c.n_layers * (2 * block + crossing + masks) + 2 * ends
    return c.n_layers * block + ends


def _saved_by_attention(c: ModelConfig, kernel: AttentionKernel, dropped: bool) -> int:
    heads, width = c.n_heads * c.d_head, projected_heads(c) * c.d_head
    if c.attention is Attention.average:
        return heads
    attention = 4 * heads + (width if c.query_key_norm is QueryKeyNorm.rms_norm else 0)
    if (
        c.attention is Attention.linear
    ):  # in float32: features, [v, 1], weights within a chunk, sums, numerator and denominator of n / z
        ours = c.n_heads * (5 * c.d_head + CHUNK + 2 * c.d_head * (c.d_head + 1) // CHUNK)
        return attention + 2 * ours
    if c.attention in WINDOWED and kernel is not AttentionKernel.plain:
        return attention + (1 + dropped) * c.n_heads * scored_keys(c) + 4 * heads
    if kernel is not AttentionKernel.fused:
        copies = 1 + dropped * (2 if kernel is AttentionKernel.plain else 1)
        attention += copies * c.n_heads * mean_keys(c.context_length, kernel)
    return attention


def mean_keys(context_length: int, kernel: AttentionKernel) -> int:
    """Compute the mean number of keys per query whose weights are computed, over a window."""
    if kernel is not AttentionKernel.blocked:
        return context_length
    block = query_block(context_length)
    starts = range(0, context_length, block)
    ends = [min(start + block, context_length) for start in starts]
    return sum((end - start) * end for start, end in zip(starts, ends, strict=True)) // context_length
