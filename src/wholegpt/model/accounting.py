"""Size and cost of a model, predicted from its config alone."""

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
"""Maps of the token, and of the state, in each layer."""


@dataclass(frozen=True)
class ParameterCount:
    """How many numbers a model learns, by part."""

    embeddings: int
    """Token and position embeddings, and the output projection where it is a matrix of its own."""
    blocks: int
    """Attention, feed-forward and norms of all layers, with the final norm."""
    unused: int
    """Those of the experts that a token does not go through."""

    @property
    def total(self) -> int:
        """All of them; a tied matrix counts once."""
        return self.embeddings + self.blocks

    @property
    def active(self) -> int:
        """Those that a token meets."""
        return self.total - self.unused


def parameter_count(config: ModelConfig) -> ParameterCount:
    """The number of parameters of a model of ``config``; that of n-grams depends on the text, and is not known."""
    c = complete_model(config)
    if c.architecture not in TRANSFORMERS:
        return _recurrent_parameters(c)
    bias, norm_vectors = int(c.bias is Bias.all), 2 if c.norm is Norm.layer_norm else 1

    def linear(inputs: int, outputs: int) -> int:
        return inputs * outputs + bias * outputs

    attention = linear(c.d_model, projected_heads(c) * c.d_head) + linear(c.n_heads * c.d_head, c.d_model)
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
    if (
        c.architecture is Architecture.encoder
    ):  # what predicts: a layer, its norm, and a number for each token
        heading = c.d_model * (c.d_model + 1) + norm + c.vocab_size
        heading += norm if c.norm_placement is NormPlacement.post else 0
    if c.architecture is Architecture.encoder_decoder:  # each layer twice, and between them
        heads = c.n_heads * c.d_head
        cross = linear(c.d_model, heads) + linear(c.d_model, 2 * heads) + linear(heads, c.d_model) + norm
        heading = final_norm + distinct * (attention + feed_forward + 2 * norm + cross)
    return ParameterCount(
        embeddings=(matrices * c.vocab_size + vectors) * c.d_model,
        blocks=heading
        + distinct * (attention + router + (c.n_experts or 1) * feed_forward + 2 * norm)
        + final_norm,
        unused=distinct * (c.n_experts - c.experts_per_token) * feed_forward if c.n_experts else 0,
    )


def _recurrent_parameters(c: ModelConfig) -> ParameterCount:
    """L · G · (2·D² + 2·D) for G gates."""
    gates = GATES.get(c.architecture, 0)
    matrices = 1 if c.embeddings is Embeddings.tied else 2
    embeddings = matrices * c.vocab_size * c.d_model if gates else 0
    return ParameterCount(embeddings, c.n_layers * gates * 2 * c.d_model * (c.d_model + 1), 0)


def projected_heads(config: ModelConfig) -> int:
    """Heads of queries, keys and values that attention makes of the stream; the average has values alone."""
    return config.n_heads + (0 if config.attention is Attention.average else 2 * config.n_kv_heads)


def flops_per_token(config: ModelConfig) -> int:
    """Floating-point operations of the forward pass, a token, in a full window of τ tokens.

    Counts the matrix products only, a multiplication and an addition as two: 2·(entries of the
    weight matrices, the output projection included) + 4·L·H·K·τ for Q·Kᵀ and the weighted sum, in
    which a causal model that skips nothing computes all τ keys. Training costs three times as much
    (Kaplan et al. 2020, section 2.1): about 6·N + 12·L·D·τ.

    In place of τ: 2·W in a sliding window, 2·W + τ/W strided; linear attention takes
    2·L·H·(C·(2·K + 1) + 2·K·(K + 1)) with chunks of C, the average nothing. An encoder–decoder counts both stacks and
    attention to the source for every position; a recurrent network 2·(2·L·G·D² + V·D) with G gates. Of a mixture the
    experts count that a token goes through, and the router; training takes capacity_factor times as many of theirs.
    """
    c = complete_model(config)
    if c.architecture not in TRANSFORMERS:
        gates = GATES.get(c.architecture, 0)
        return 2 * (2 * c.n_layers * gates * c.d_model + c.vocab_size) * c.d_model if gates else 0
    inward = 2 if c.feed_forward is FeedForward.swiglu else 1
    attention = c.d_model * (projected_heads(c) + c.n_heads) * c.d_head
    feed_forward = c.experts_per_token * (inward + 1) * c.d_model * c.d_ff + c.n_experts * c.d_model
    predicting = c.d_model**2 if c.architecture is Architecture.encoder else 0
    if c.architecture is Architecture.encoder_decoder:  # every position goes through both halves in training
        layer = 2 * (attention + feed_forward) + 4 * c.d_model * c.n_heads * c.d_head
        return 2 * (
            c.n_layers * layer + c.vocab_size * c.d_model
        ) + 3 * c.n_layers * c.n_heads * mixing_flops(c)
    matrices = c.n_layers * (attention + feed_forward) + c.vocab_size * c.d_model + predicting
    return 2 * matrices + c.n_layers * c.n_heads * mixing_flops(c)


def mixing_flops(config: ModelConfig) -> int:
    """Forward FLOPs of one head of one layer for a token, beside its projections."""
    d_head, chunk = config.d_head, CHUNK
    match config.attention:
        case Attention.average:
            return 0
        case Attention.linear:
            return 2 * (chunk * (2 * d_head + 1) + 2 * d_head * (d_head + 1))
        case _:
            return 4 * d_head * scored_keys(config)


def scored_keys(config: ModelConfig) -> int:
    """Keys whose scores are computed for a query in a full window, where a pattern's others are skipped."""
    tau, window = config.context_length, config.attention_window
    if config.attention not in WINDOWED:
        return tau
    return 2 * window + (-(-tau // window) if config.attention is Attention.strided else 0)


def training_memory_bytes(config: ModelConfig) -> int:
    """Bytes of weights, gradients and AdamW's two moments in float32: 16 a parameter. Activations come on top."""
    return 4 * FLOAT32_BYTES * parameter_count(config).total


def saved_activations(config: ModelConfig, kernel: AttentionKernel) -> int:
    """Numbers that the forward pass of a training step keeps for the backward pass, a token, in a full window.

    In the number format of the products. By layer: the residual stream before each norm and after it, what
    enters and leaves attention and its weights, what enters and leaves the activation of the feed-forward
    layer, and where there is dropout one mask for each place. The fused kernel keeps no weights. An encoder–decoder
    has both stacks, with the plain kernel always, and between the decoder's layers attention to the source.
    """
    c = complete_model(config)
    dropped = c.dropout > 0
    if c.architecture is Architecture.ngram:
        return 0
    if c.architecture not in TRANSFORMERS:  # gates and states of each position, and what enters
        return (
            c.n_layers * (GATES.get(c.architecture, 0) + 3 + dropped) * c.d_model + (2 + dropped) * c.d_model
        )
    both = c.architecture is Architecture.encoder_decoder
    attention = _saved_by_attention(c, used_kernel(c.architecture, kernel), dropped)
    inner = {FeedForward.swiglu: 4, FeedForward.relu: 1}  # what ReLU lets through says what entered it
    feed_forward = inner.get(c.feed_forward, 2) * c.d_ff
    if c.n_experts:  # places for as many tokens as the experts take, what enters and what leaves them
        feed_forward += 2 * c.d_model
        feed_forward = round(c.capacity_factor * c.experts_per_token * feed_forward)
    block = (4 + 2 * dropped) * c.d_model + attention + feed_forward
    ends = (2 + dropped) * c.d_model
    if both:
        weights = c.n_heads * (1 + 2 * dropped) * c.context_length
        crossing = (2 + dropped) * c.d_model + 6 * c.n_heads * c.d_head + weights
        masks = 3 * c.context_length // 2  # a byte for each key
        return c.n_layers * (2 * block + crossing + masks) + 2 * ends
    return c.n_layers * block + ends


def _saved_by_attention(c: ModelConfig, kernel: AttentionKernel, dropped: bool) -> int:
    heads, width = c.n_heads * c.d_head, projected_heads(c) * c.d_head
    if c.attention is Attention.average:
        return heads
    attention = 4 * heads + (width if c.query_key_norm is QueryKeyNorm.rms_norm else 0)
    if (
        c.attention is Attention.linear
    ):  # in float32: features, [v, 1], weights within a chunk, sums, both parts of n / z
        ours = c.n_heads * (5 * c.d_head + CHUNK + 2 * c.d_head * (c.d_head + 1) // CHUNK)
        return attention + 2 * ours
    if c.attention in WINDOWED and kernel is not AttentionKernel.plain:
        return attention + (1 + dropped) * c.n_heads * scored_keys(c) + 4 * heads
    if kernel is not AttentionKernel.fused:
        copies = 1 + dropped * (2 if kernel is AttentionKernel.plain else 1)
        attention += copies * c.n_heads * mean_keys(c.context_length, kernel)
    return attention


def mean_keys(context_length: int, kernel: AttentionKernel) -> int:
    """Keys whose weights are computed for a query, on average over a window."""
    if kernel is not AttentionKernel.blocked:
        return context_length
    block = query_block(context_length)
    starts = range(0, context_length, block)
    ends = [min(start + block, context_length) for start in starts]
    return sum((end - start) * end for start, end in zip(starts, ends, strict=True)) // context_length
