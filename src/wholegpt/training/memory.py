"""Prediction of the memory of training, and the micro-batch that fits into the memory that is free."""

from collections.abc import Iterator
from dataclasses import replace

from wholegpt.errors import ConfigError
from wholegpt.losses.language_modeling import LOGITS_AT_ONCE
from wholegpt.model import parameter_count, saved_activations
from wholegpt.settings.choices import (
    ActivationCheckpointing,
    Architecture,
    Documents,
    Dtype,
    FeedForward,
    OptimizerKind,
)
from wholegpt.settings.schema import Config, ModelConfig
from wholegpt.settings.validation import BLOCKWISE, TRANSFORMERS, complete_model

FLOAT32_BYTES = 4
HEADROOM = 0.9
"""Share of the free memory that the prediction may fill."""


def peak_tensor_bytes(config: Config, micro_batch_size: int) -> int:
    """Predict the peak of the bytes of tensors in an optimizer step, with micro-batches of so many windows.

    Weights, gradients and the optimizer's state in float32; the weights once more where products run in
    16 bits; and the largest of what comes on top: with what the forward pass of one micro-batch keeps, the
    loss's logits and gradients, or the gradients inside the last feed-forward layer; or Muon's temporary
    tensors, seven times the maps of attention. ``config`` must be decided.
    """
    model, training = complete_model(config.model), config.training
    if model.architecture is Architecture.ngram:
        return 0  # it has no steps
    single, muon = config.precision.dtype is Dtype.float32, config.optimizer.kind is OptimizerKind.muon
    count = parameter_count(model)
    size = FLOAT32_BYTES if single else 2
    moments = 2 * count.embeddings + (1 if muon else 2) * count.blocks
    averages = count.total if training.ema_decay else 0
    held = FLOAT32_BYTES * (2 * count.total + moments + averages) + (0 if single else size * count.total)
    tokens = micro_batch_size * config.window_length
    both = model.architecture is Architecture.encoder_decoder
    if config.windows.documents is Documents.separate or config.windows.truncation or both:
        held += 2 * micro_batch_size * config.window_length**2  # which keys each query sees, and which not
    kept = saved_activations(model, config.precision.attention)
    if training.activation_checkpointing is ActivationCheckpointing.blocks:
        kept = kept // model.n_layers + model.n_layers * model.d_model
    logits = size * min(tokens, max(1, LOGITS_AT_ONCE // model.vocab_size)) * model.vocab_size
    of_weight = (FLOAT32_BYTES + size) * model.vocab_size * model.d_model
    at_the_loss = size * tokens * 2 * model.d_model + logits + of_weight
    inside = (5 if model.feed_forward is FeedForward.swiglu else 3) * model.d_ff
    recurrent = model.architecture not in TRANSFORMERS
    maps = count.blocks if recurrent else attention_parameters(model)
    on_top = size * tokens * kept + max(at_the_loss, size * tokens * inside)
    return held + max(on_top, 7 * size * maps if muon else 0)


def attention_parameters(model: ModelConfig) -> int:
    """Return the number of parameters in the matrices of all attention layers."""
    heads = 2 * model.n_heads + 2 * model.n_kv_heads
    return (model.distinct_layers or model.n_layers) * model.d_model * heads * model.d_head


def fitting_micro_batch(config: Config, free_bytes: float) -> int:
    """Return the largest micro-batch, the batch halved zero or more times, whose prediction fits into ``free_bytes``.

    Raises ``ConfigError``, saying what would fit, where not even one window does.
    """
    budget = HEADROOM * free_bytes
    rows = config.training.batch_size
    while rows > 1 and peak_tensor_bytes(config, rows) > budget:
        rows = -(-rows // 2)
    if peak_tensor_bytes(config, rows) <= budget:
        return rows
    advice = next(
        (words for words, smaller in _smaller(config) if peak_tensor_bytes(smaller, 1) <= budget), ""
    )
    raise ConfigError(
        f"training needs about {peak_tensor_bytes(config, 1) / 1e9:.1f} GB for a single window of "
        f"{config.window_length:,} tokens, and {free_bytes / 1e9:.1f} GB are free; "
        + (f"this would fit: {advice}" if advice else "a far smaller model is needed")
    )


def _smaller(config: Config) -> Iterator[tuple[str, Config]]:
    """Yield configs that need less and less memory, each with the options that make it."""
    words: list[str] = []
    if config.model.architecture in BLOCKWISE:
        config = replace(
            config, training=replace(config.training, activation_checkpointing=ActivationCheckpointing.blocks)
        )
        words.append("--training.activation-checkpointing blocks")
        yield words[0], config
    while config.model.n_layers > 1:
        layers = config.model.n_layers // 2
        config = replace(config, model=replace(config.model, n_layers=layers, distinct_layers=0))
        yield " ".join([*words, f"--model.n-layers {layers}"]), config
