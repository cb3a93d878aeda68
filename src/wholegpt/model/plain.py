"""A GPT on one page, in the order of its equations: read this first.

``logits`` computes GPT-2 (learned positions, layer norm, GELU, biases) or the modern variant (rotary positions, RMS
norm, SwiGLU, grouped-query attention) from the weights of a model. It has no cache, no dropout and no fast path. The
tests compare ``Transformer`` and its gradients with it.

Shapes: B batch, T positions, D model width, H query heads, G key-value heads, K head width, V vocabulary.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from wholegpt.errors import ConfigError
from wholegpt.model.layers.positions import rotary_frequencies
from wholegpt.settings.choices import Architecture, Attention, FeedForward, Norm, NormPlacement, Positions
from wholegpt.settings.schema import ModelConfig

Weights = Mapping[str, Tensor]
"""Tensors by name, as in ``Transformer.state_dict()`` and in ``model.safetensors``, which has tied ones only once."""


def logits(token_ids: Int[Tensor, "B T"], weights: Weights, config: ModelConfig) -> Float[Tensor, "B T V"]:
    """Return the logits of the token after each position.

    h₀ = W_e[x] + W_p[t] (E3), then L blocks (E5), then LN(h_L)·W_eᵀ (E7). ``config`` is complete, like that of a
    ``Transformer``. Raises ``ConfigError`` for any other variant.
    """
    if not is_plain(config):
        raise ConfigError(
            "the plain model is GPT-2 or modern, of any size; use Transformer for other variants"
        )
    h = weights["token_embedding.weight"][token_ids]
    if config.positions is Positions.learned:
        h = h + weights["position_embedding.weight"][: token_ids.shape[1]]
    for layer in range(config.n_layers):
        h = block(h, weights, f"blocks.{layer}", config)
    tied = weights["token_embedding.weight"]
    return norm(h, weights, "final_norm", config) @ weights.get("unembedding.weight", tied).T


def is_plain(config: ModelConfig) -> bool:
    """Return whether this page computes models of ``config``."""
    return (
        config.architecture is Architecture.transformer
        and config.positions in (Positions.learned, Positions.rotary)
        and config.feed_forward in (FeedForward.gelu_tanh, FeedForward.swiglu)
        and config.norm_placement is NormPlacement.pre
        and config.attention is Attention.full
        and not config.n_experts
        and not config.distinct_layers
    )


def block(
    h: Float[Tensor, "B T D"], weights: Weights, name: str, config: ModelConfig
) -> Float[Tensor, "B T D"]:
    """Return h″, with h′ = h + Attn(LN(h)) and h″ = h′ + FFN(LN(h′)) (E5)."""
    h = h + attention(
        norm(h, weights, f"{name}.attention_norm", config), weights, f"{name}.attention", config
    )
    return h + feed_forward(
        norm(h, weights, f"{name}.feed_forward_norm", config), weights, f"{name}.feed_forward", config
    )


def attention(
    x: Float[Tensor, "B T D"], weights: Weights, name: str, config: ModelConfig
) -> Float[Tensor, "B T D"]:
    """Return softmax(Q·Kᵀ/√K + M)·V of all heads, mapped back to D (E4); M is −∞ for later positions, else 0."""
    heads, kv_heads, width = config.n_heads, config.n_kv_heads, config.d_head
    projected = linear(x, weights, f"{name}.query_key_value").unflatten(-1, (-1, width)).transpose(1, 2)
    q, k, v = projected.split([heads, kv_heads, kv_heads], dim=1)  # B H T K and twice B G T K
    if f"{name}.query_norm.weight" in weights:
        q = norm(q, weights, f"{name}.query_norm", config)
        k = norm(k, weights, f"{name}.key_norm", config)
    if config.positions is Positions.rotary:
        frequencies = rotary_frequencies(config, x.dtype, x.device)
        q, k = rotate(q, frequencies), rotate(k, frequencies)
    # A group of query heads shares a key-value head.
    k, v = (part.repeat_interleave(heads // kv_heads, dim=1) for part in (k, v))
    later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
    scores = (q @ k.transpose(-2, -1) / math.sqrt(width)).masked_fill(later, -math.inf)
    mixed = torch.softmax(scores, dim=-1) @ v
    return linear(mixed.transpose(1, 2).flatten(-2), weights, f"{name}.output")


def rotate(heads: Float[Tensor, "B H T K"], frequencies: Float[Tensor, " pairs"]) -> Float[Tensor, "B H T K"]:
    """Return the heads with the pair (x_i, x_{i+K/2}) turned by t·θ_i at position t (Su et al. 2021).

    The frequencies are θ_i = base^(−2i/K), or lower ones in a model with ``rotary_scaling``.
    """
    angles = torch.arange(heads.shape[-2], dtype=heads.dtype, device=heads.device)[:, None] * frequencies
    first, second = heads.chunk(2, dim=-1)
    return torch.cat(
        (first * angles.cos() - second * angles.sin(), first * angles.sin() + second * angles.cos()), dim=-1
    )


def feed_forward(
    x: Float[Tensor, "B T D"], weights: Weights, name: str, config: ModelConfig
) -> Float[Tensor, "B T D"]:
    """Return W₂·GELU(W₁x + b₁) + b₂ (E6), or W₂·(SiLU(W_g x) ⊙ W₁x) (Shazeer 2020)."""
    inner = linear(x, weights, f"{name}.expand")
    if config.feed_forward is FeedForward.swiglu:
        inner = F.silu(linear(x, weights, f"{name}.gate")) * inner
    else:
        inner = F.gelu(inner, approximate="tanh")
    return linear(inner, weights, f"{name}.output")


def norm(x: Float[Tensor, "*B D"], weights: Weights, name: str, config: ModelConfig) -> Float[Tensor, "*B D"]:
    """Return (x − mean(x)) / √(var(x) + ε)·γ + β (layer norm), or x / √(mean(x²) + ε)·γ (RMS norm)."""
    if config.norm is Norm.layer_norm:
        x = x - x.mean(-1, keepdim=True)
    x = x / (x.square().mean(-1, keepdim=True) + config.norm_epsilon).sqrt()
    return x * weights[f"{name}.weight"] + weights.get(f"{name}.bias", 0)


def linear(x: Float[Tensor, "*B D"], weights: Weights, name: str) -> Float[Tensor, "*B F"]:
    """Return W·x + b."""
    return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)
