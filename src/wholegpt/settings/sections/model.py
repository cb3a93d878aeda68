"""The architecture: its settings, their checks, and the sizes derived from others."""

import dataclasses
import math
from dataclasses import dataclass

from wholegpt.errors import ConfigError
from wholegpt.settings.choices import (
    Architecture,
    Attention,
    Bias,
    Embeddings,
    FeedForward,
    Norm,
    NormPlacement,
    Positions,
    QueryKeyNorm,
    RotaryScaling,
)
from wholegpt.settings.sections.ranges import at_least, below_one, require

TRANSFORMERS = (Architecture.transformer, Architecture.encoder, Architecture.encoder_decoder)
NGRAM = ("ngram_order", "ngram_discount")
WHOLE = ("distinct_layers", "n_experts")
"""Settings that need a single stack of layers."""
OWN = {
    "segments": Architecture.encoder,
    "separator": Architecture.encoder_decoder,
    **dict.fromkeys(NGRAM, Architecture.ngram),
}
"""Settings that apply to one architecture only."""
USED = {
    **dict.fromkeys(
        (Architecture.elman, Architecture.gru, Architecture.lstm),
        ("vocab_size", "context_length", "n_layers", "d_model", "embeddings", "dropout"),
    ),
    Architecture.ngram: ("vocab_size", "context_length", *NGRAM),
}
"""Settings that apply to the architectures without attention."""
BLOCKWISE = (Architecture.transformer, Architecture.encoder)
"""Architectures that support compilation and activation checkpointing."""
MOST_ORDER = 20
LARGEST_SIZE, MOST_LAYERS = 2**24, 10_000
"""Limits of every size of a model and of its layers: a configuration may come from an untrusted source."""
WINDOWED = (Attention.sliding_window, Attention.strided)
"""Kinds of attention that have a window."""
RECURRENT = (Attention.linear, Attention.average)
"""Kinds of attention that keep a running sum instead of keys and values."""

ROTARY_SCALING_FIELDS: dict[RotaryScaling, tuple[str, ...]] = {
    RotaryScaling.none: (),
    RotaryScaling.linear: ("rotary_factor",),
    RotaryScaling.llama3: (
        "rotary_factor",
        "rotary_low_freq_factor",
        "rotary_high_freq_factor",
        "rotary_original_context",
    ),
}
"""The settings of each kind of rotary scaling."""


@dataclass(frozen=True)
class ModelConfig:
    """The architecture of the model."""

    architecture: Architecture = Architecture.transformer
    """Kind of model: transformer (decoder), encoder (bidirectional, masked language modeling), encoder_decoder
    (sequence to sequence), a recurrent network (elman, gru, lstm), or ngram."""
    vocab_size: int = 0
    """Number of tokens in the vocabulary (V). 0: taken from the tokenizer."""
    context_length: int = 256
    """Maximum number of tokens in the context (τ)."""
    n_layers: int = 4
    """Number of blocks (L)."""
    d_model: int = 256
    """Width of the residual stream (D)."""
    n_heads: int = 4
    """Number of query heads per attention layer (H)."""
    n_kv_heads: int = 0
    """Number of key-value heads, each shared by a group of query heads. 0: n_heads."""
    d_head: int = 0
    """Width of an attention head (K). 0: d_model / n_heads."""
    d_ff: int = 0
    """Width of the feed-forward layer. 0: 4·d_model; for swiglu 8/3·d_model, rounded up to a multiple of 64."""
    distinct_layers: int = 0
    """Number of blocks with weights of their own; the layers use them in turn. 0: n_layers (no weight sharing)."""
    attention: Attention = Attention.full
    """Positions that attention sees: all previous ones (full), the last attention_window (sliding_window), these and
    every attention_window-th before them (strided); linear attention, or the mean of all previous (average)."""
    attention_window: int = 0
    """Window size of sliding_window and strided attention, in tokens."""
    positions: Positions = Positions.rotary
    """Position encoding: learned embeddings, sinusoidal embeddings, rotary, or none."""
    rotary_base: float = 10_000.0
    """Base of the rotary frequencies. For rotary positions only."""
    rotary_scaling: RotaryScaling = RotaryScaling.none
    """Scaling of the rotary frequencies for a longer context: none, linear (all frequencies are divided by
    rotary_factor), or llama3 (only the low ones, as in Llama 3.1). For rotary positions only."""
    rotary_factor: float = 8.0
    """Factor by which linear and llama3 scaling divide frequencies. At least 1."""
    rotary_low_freq_factor: float = 1.0
    """For llama3: a frequency with fewer periods than this in the original context is divided by rotary_factor.
    Above 0."""
    rotary_high_freq_factor: float = 4.0
    """For llama3: a frequency with more periods than this in the original context is unchanged; those between the two
    limits are interpolated. Above rotary_low_freq_factor."""
    rotary_original_context: int = 8192
    """For llama3: context length of pretraining, before scaling, in tokens."""
    norm: Norm = Norm.rms_norm
    """Normalization layer of the blocks."""
    norm_placement: NormPlacement = NormPlacement.pre
    """Normalize the input of each sublayer (pre), or the residual sum after it as in GPT-1 (post)."""
    norm_epsilon: float = 1e-6
    """Value added to the variance for numerical stability. Above 0."""
    query_key_norm: QueryKeyNorm = QueryKeyNorm.rms_norm
    """Normalization of queries and keys, per head."""
    feed_forward: FeedForward = FeedForward.swiglu
    """Feed-forward layer: GELU (gelu), its tanh approximation (gelu_tanh), ReLU, squared ReLU, or gated (swiglu)."""
    n_experts: int = 0
    """Number of experts per block of a mixture of experts (Switch). 0: one dense feed-forward layer."""
    experts_per_token: int = 1
    """Number of experts that process each token."""
    capacity_factor: float = 1.25
    """Maximum tokens per expert in training, relative to an even share. Tokens above it skip the layer."""
    bias: Bias = Bias.none
    """Biases of the linear layers."""
    embeddings: Embeddings = Embeddings.tied
    """Share the weights of the token embedding and the output projection (tied), or not (untied)."""
    dropout: float = 0.0
    """Dropout probability of attention weights, residual branches and embeddings."""
    separator: int = -1
    """Token id between source and target of an encoder_decoder. -1: set by training."""
    segments: int = 0
    """Number of segment embeddings of an encoder: 2 for tasks with two texts, otherwise 0."""
    ngram_order: int = 5
    """Order of the n-gram model: 1 is the unigram model, 0 the uniform distribution. At most 20."""
    ngram_discount: float = 0.0
    """Discount of Kneser–Ney smoothing, below 1. 0: estimated from the n-grams that occur once and twice."""


def complete_model(model: ModelConfig) -> ModelConfig:
    """Return ``model`` checked and with all derived sizes. Raises ``ConfigError`` if ``vocab_size`` is 0."""
    if model.vocab_size == 0:
        raise ConfigError("model.vocab_size is 0; set it, or train from text, where the tokenizer sets it")
    return derive_sizes(model)


def derive_sizes(model: ModelConfig) -> ModelConfig:
    """Return ``model`` checked, with each 0 that stands for a derived size replaced. ``vocab_size`` may be 0."""
    check_model(model)
    if model.architecture not in TRANSFORMERS:
        return model
    d_ff = 4 * model.d_model
    if model.feed_forward is FeedForward.swiglu:
        d_ff = -(-8 * model.d_model // (3 * 64)) * 64
    return dataclasses.replace(
        model,
        n_kv_heads=model.n_kv_heads or model.n_heads,
        d_head=model.d_head or model.d_model // model.n_heads,
        d_ff=model.d_ff or d_ff,
    )


def check_model(model: ModelConfig) -> None:
    """Raise ``ConfigError``, naming the setting, if the architecture is invalid."""
    _check_applicable(model)
    _check_sizes(model)
    below_one("model.dropout", model.dropout)
    if model.architecture not in TRANSFORMERS:
        return
    require("model.norm_epsilon", model.norm_epsilon, model.norm_epsilon > 0, "above 0")
    require("model.rotary_base", model.rotary_base, model.rotary_base > 1, "above 1")
    _check_rotary_scaling(model)
    distinct = model.distinct_layers
    if distinct < 0 or distinct > model.n_layers or (distinct and model.n_layers % distinct):
        raise ConfigError(
            f"model.distinct_layers is {distinct}; expected 0 or a divisor of model.n_layers, {model.n_layers}"
        )
    _check_heads(model)
    _check_attention(model)
    _check_experts(model)


def check_separable(model: ModelConfig, what: str) -> None:
    """Raise ``ConfigError`` if the model cannot keep the documents of a window separate, as the setting needs."""
    summed = model.attention in RECURRENT
    if summed or model.architecture not in TRANSFORMERS:
        kind = f"{model.attention} attention" if summed else model.architecture
        raise ConfigError(
            f"{what} keeps the documents of a window separate, which {kind} cannot do: its state sums all previous "
            "tokens"
        )


def _check_applicable(model: ModelConfig) -> None:
    """Refuse settings that the architecture does not have."""
    kind, used, default = model.architecture, USED.get(model.architecture), ModelConfig()
    for name in (field.name for field in dataclasses.fields(model)):
        applies = OWN.get(name, kind) is kind if used is None else name in used
        applies = applies and not (kind is Architecture.encoder_decoder and name in WHOLE)
        if name != "architecture" and not applies and getattr(model, name) != getattr(default, name):
            raise ConfigError(f"model.{name} does not apply to {kind}; leave it out")
    require("model.segments", model.segments, model.segments in (0, 2), "of 0 or 2")
    encodes = kind in (Architecture.encoder, Architecture.encoder_decoder)
    if encodes and model.attention is not Attention.full:
        raise ConfigError(
            f"model.attention is {model.attention}, which is causal; {kind} needs full attention"
        )
    order = model.ngram_order
    require("model.ngram_order", order, 0 <= order <= MOST_ORDER, f"from 0 to {MOST_ORDER}")
    below_one("model.ngram_discount", model.ngram_discount)


def _check_sizes(model: ModelConfig) -> None:
    positive, derived = (
        ("context_length", "d_model", "n_heads"),
        ("vocab_size", "n_kv_heads", "d_head", "d_ff"),
    )
    for name in ("n_layers", *positive):
        at_least(f"model.{name}", getattr(model, name), 1)
    for name in derived:
        at_least(f"model.{name}", getattr(model, name), 0)
    for name in (*positive, *derived, "n_experts"):
        value = getattr(model, name)
        require(f"model.{name}", value, value <= LARGEST_SIZE, f"of at most {LARGEST_SIZE:,}")
    require("model.n_layers", model.n_layers, model.n_layers <= MOST_LAYERS, f"of at most {MOST_LAYERS:,}")


def _check_heads(model: ModelConfig) -> None:
    if model.d_head == 0 and model.d_model % model.n_heads:
        raise ConfigError(
            f"model.d_model is {model.d_model}, which is not divisible by model.n_heads, {model.n_heads}; "
            f"try d_model {model.d_model // model.n_heads * model.n_heads or model.n_heads}"
        )
    kv_heads = model.n_kv_heads or model.n_heads
    if model.n_heads % kv_heads:
        raise ConfigError(
            f"model.n_kv_heads is {kv_heads}; expected a divisor of model.n_heads, {model.n_heads}"
        )
    d_head = model.d_head or model.d_model // model.n_heads
    if model.positions is Positions.rotary and d_head % 2:
        raise ConfigError(f"model.d_head is {d_head}; rotary positions need an even width")


def _check_rotary_scaling(model: ModelConfig) -> None:
    scaling, default = model.rotary_scaling, ModelConfig()
    if scaling is not RotaryScaling.none and model.positions is not Positions.rotary:
        raise ConfigError(
            f"model.rotary_scaling is {scaling}, but model.positions is {model.positions}; leave it none, or set "
            "model.positions to rotary"
        )
    for name in ROTARY_SCALING_FIELDS[RotaryScaling.llama3]:
        if name not in ROTARY_SCALING_FIELDS[scaling] and getattr(model, name) != getattr(default, name):
            kinds = [kind for kind, names in ROTARY_SCALING_FIELDS.items() if name in names]
            raise ConfigError(
                f"model.{name} is set, but model.rotary_scaling is {scaling}; leave it out, or set "
                f"model.rotary_scaling to {' or '.join(kinds)}"
            )
    factor = model.rotary_factor
    require("model.rotary_factor", factor, 1 <= factor < math.inf, "of at least 1, and finite")
    low, high = model.rotary_low_freq_factor, model.rotary_high_freq_factor
    require("model.rotary_low_freq_factor", low, 0 < low < math.inf, "above 0, and finite")
    expected = f"above model.rotary_low_freq_factor, {low}, and finite"
    require("model.rotary_high_freq_factor", high, low < high < math.inf, expected)
    length, expected = model.rotary_original_context, f"from 1 to {LARGEST_SIZE:,}"
    require("model.rotary_original_context", length, 1 <= length <= LARGEST_SIZE, expected)


def _check_attention(model: ModelConfig) -> None:
    kind, window = model.attention, model.attention_window
    if kind in WINDOWED:
        expected = f"from 2 to model.context_length, {model.context_length}, for {kind} attention"
        require("model.attention_window", window, 2 <= window <= model.context_length, expected)
    elif window:
        raise ConfigError(
            f"model.attention_window is {window}, but {kind} attention has no window; leave it 0, or set "
            f"model.attention to {' or '.join(WINDOWED)}"
        )
    if kind in RECURRENT and model.positions is Positions.rotary:
        raise ConfigError(
            f"model.positions is rotary, which {kind} attention does not support; try none, learned or sinusoidal"
        )


def _check_experts(model: ModelConfig) -> None:
    at_least("model.n_experts", model.n_experts, 0)
    default = ModelConfig()
    if not model.n_experts:
        for name in ("experts_per_token", "capacity_factor"):
            if getattr(model, name) != getattr(default, name):
                raise ConfigError(f"model.{name} is set, but model.n_experts is 0; set both or neither")
        return
    if model.distinct_layers:
        raise ConfigError(
            "model.n_experts cannot be combined with shared layers; leave model.distinct_layers 0"
        )
    chosen, expected = model.experts_per_token, f"from 1 to model.n_experts, {model.n_experts}"
    require("model.experts_per_token", chosen, 1 <= chosen <= model.n_experts, expected)
    factor = model.capacity_factor
    require("model.capacity_factor", factor, 0 < factor < math.inf, "above 0, and finite")
