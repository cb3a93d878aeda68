"""Attention (E4) in plain, blocked and fused form, and the self-attention layer of a decoder.

Shapes: B batch, T query positions, S key positions, D model width, H query heads, G key-value heads, K head
width.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from wholegpt.model.layers.blocked_attention import blocked_causal_attention
from wholegpt.model.layers.cache import KeyValueCache, ModelCache
from wholegpt.model.layers.dropout import dropout as drop
from wholegpt.model.layers.linear import Linear
from wholegpt.model.layers.norms import RMSNorm
from wholegpt.model.layers.positions import Rotation, rotate
from wholegpt.model.layers.sparse_attention import sparse_attention
from wholegpt.settings.choices import Architecture, Attention, AttentionKernel, Bias, QueryKeyNorm
from wholegpt.settings.schema import ModelConfig
from wholegpt.settings.validation import WINDOWED


def attention(
    queries: Float[Tensor, "B H T K"],
    keys: Float[Tensor, "B H S K"],
    values: Float[Tensor, "B H S K"],
    visible: Bool[Tensor, "*M T S"] | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "B H T K"]:
    """Compute softmax(Q·Kᵀ/√K + M)·V per head (E4; Vaswani et al. 2017, section 3.2.1).

    M is 0 where ``visible`` and −∞ elsewhere; without ``visible`` every key is seen. A mask per sequence has
    the shape B 1 T S. ``dropout`` is the probability of zeroing an attention weight. Scaling by √K keeps the
    variance of the scores near 1 for queries and keys of unit variance.
    """
    scores = (queries / math.sqrt(queries.shape[-1])) @ keys.transpose(-2, -1)
    if visible is not None:
        scores = scores.masked_fill(~visible, float("-inf"))
    weights = torch.softmax(scores, dim=-1)
    return drop(weights, dropout).to(values.dtype) @ values


def fused_attention(
    queries: Float[Tensor, "B H T K"],
    keys: Float[Tensor, "B H S K"],
    values: Float[Tensor, "B H S K"],
    visible: Bool[Tensor, "*M T S"] | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "B H T K"]:
    """Compute ``attention`` with PyTorch's fused kernels, which never store the B·H·T·S weights.

    If ``visible`` is square and has no batch dimension, it must be the causal mask: its values are ignored,
    and the kernel skips the upper triangle.
    """
    n_queries, n_keys = queries.shape[2], keys.shape[2]
    causal = visible is not None and visible.ndim == 2 and n_queries == n_keys
    if visible is not None and n_queries == 1:
        visible = None
    return F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=None if causal else visible, dropout_p=dropout, is_causal=causal
    )


def blocked_attention(
    queries: Float[Tensor, "B H T K"],
    keys: Float[Tensor, "B H S K"],
    values: Float[Tensor, "B H S K"],
    visible: Bool[Tensor, "*M T S"] | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "B H T K"]:
    """Compute ``attention`` with ``blocked_causal_attention``, or with ``attention`` if the mask is not
    square.

    ``visible``, if given, must be causal: the values of a square mask without batch dimension are ignored.
    """
    if visible is None or queries.shape[2] != keys.shape[2] or queries.shape[2] == 1:
        return attention(queries, keys, values, visible, dropout)
    return blocked_causal_attention(queries, keys, values, dropout, visible if visible.ndim > 2 else None)


def one_query_attention(
    queries: Float[Tensor, "B H 1 K"],
    keys: Float[Tensor, "B G S K"],
    values: Float[Tensor, "B G S K"],
    visible: Bool[Tensor, "*M 1 S"] | None = None,
) -> Float[Tensor, "B H 1 K"]:
    """Compute ``attention`` of one position in fewer calls; queries that share a key-value head are rows of
    one product.
    """
    batch, shared, positions, width = keys.shape
    rows = queries.reshape(batch * shared, -1, width)
    transposed = keys.reshape(-1, positions, width).transpose(1, 2)
    scores = torch.baddbmm(rows.new_empty(1), rows, transposed, beta=0, alpha=1 / math.sqrt(width))
    if visible is not None:
        scores.view(batch, shared, -1, positions).masked_fill_(~visible, float("-inf"))
    mixed = torch.bmm(torch.softmax(scores, dim=-1), values.reshape(-1, positions, width))
    return mixed.view(queries.shape)


KERNELS: dict[AttentionKernel, Callable[..., Tensor]] = {
    AttentionKernel.plain: attention,
    AttentionKernel.blocked: blocked_attention,
    AttentionKernel.fused: fused_attention,
}


def used_kernel(architecture: Architecture, kernel: AttentionKernel) -> AttentionKernel:
    """Return the kernel that computes attention if ``kernel`` is requested.

    The blocked kernel needs a causal mask: an encoder, which has none, uses the fused kernel instead. An
    encoder–decoder always uses the plain kernel, the only one that takes its masks.
    """
    if architecture is Architecture.encoder_decoder:
        return AttentionKernel.plain
    if architecture is Architecture.encoder and kernel is AttentionKernel.blocked:
        return AttentionKernel.fused
    return kernel


def make_kernel(config: ModelConfig, kernel: AttentionKernel) -> Callable[..., Tensor]:
    """Return the implementation of ``kernel`` that skips the scores which ``config.attention`` leaves out."""
    kernel = used_kernel(config.architecture, kernel)
    if config.attention not in WINDOWED or kernel is AttentionKernel.plain:
        return KERNELS[kernel]
    strided = config.attention is Attention.strided

    def sparse(
        queries: Float[Tensor, "B H T K"],
        keys: Float[Tensor, "B H S K"],
        values: Float[Tensor, "B H S K"],
        visible: Bool[Tensor, "*M T S"] | None = None,
        dropout: float = 0.0,
    ) -> Float[Tensor, "B H T K"]:
        """Compute sparse attention; the values of a square ``visible`` without batch dimension are ignored."""
        if visible is None or visible.ndim > 2 or queries.shape[2] != keys.shape[2]:
            return attention(queries, keys, values, visible, dropout)
        return sparse_attention(queries, keys, values, config.attention_window, strided, dropout)

    return sparse


@dataclass(frozen=True)
class SequenceContext:
    """Inputs that all attention layers of one forward pass share."""

    visible: Bool[Tensor, "*M T S"] | None
    """Which keys each query may see: no later ones in a decoder, and none of other documents; ``None``: all."""
    rotation: Rotation | None
    """Rotation of queries and keys for their positions; ``None`` without rotary positions."""
    cache: ModelCache | None
    """The cache of earlier positions."""


class SelfAttention(nn.Module):
    """Multi-head self-attention with an output projection W_O.

    Groups of H/G query heads share a key-value head (Ainslie et al. 2023).
    """

    def __init__(self, config: ModelConfig, kernel: AttentionKernel) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.d_head = config.n_heads, config.n_kv_heads, config.d_head
        self.dropout = config.dropout
        self.kernel = make_kernel(config, kernel)
        rows = [heads * config.d_head for heads in (config.n_heads, *2 * [config.n_kv_heads])]
        self.query_key_value = Linear(config.d_model, sum(rows), bias=config.bias is not Bias.none)
        self.query_key_value.stacked_rows = rows
        self.output = Linear(config.n_heads * config.d_head, config.d_model, bias=config.bias is Bias.all)
        normalized = config.query_key_norm is QueryKeyNorm.rms_norm
        self.query_norm = RMSNorm(config.d_head, config.norm_epsilon) if normalized else nn.Identity()
        self.key_norm = RMSNorm(config.d_head, config.norm_epsilon) if normalized else nn.Identity()

    def forward(
        self, stream: Float[Tensor, "B T D"], context: SequenceContext, layer: int
    ) -> Float[Tensor, "B T D"]:
        """Return each position's weighted mean of the visible values, projected by W_O."""
        batch, length, _ = stream.shape
        heads = self.query_key_value(stream).view(batch, length, -1, self.d_head).transpose(1, 2)
        queries, keys, values = heads.split((self.n_heads, self.n_kv_heads, self.n_kv_heads), dim=1)
        queries, keys = self.query_norm(queries), self.key_norm(keys)
        if context.rotation is not None:
            queries, keys = rotate(queries, context.rotation), rotate(keys, context.rotation)
        mixed = self.attend(queries, keys, values, context, layer)
        return self.output(mixed.to(stream.dtype).transpose(1, 2).reshape(batch, length, -1))

    def attend(
        self,
        queries: Float[Tensor, "B H T K"],
        keys: Float[Tensor, "B G T K"],
        values: Float[Tensor, "B G T K"],
        context: SequenceContext,
        layer: int,
    ) -> Float[Tensor, "B H T K"]:
        """Return each head's weighted means; the cache stores keys and values."""
        if isinstance(context.cache, KeyValueCache):
            keys, values = context.cache.extend(layer, keys, values)
            queries = queries.to(keys.dtype)
            if queries.shape[2] == 1:
                return one_query_attention(queries, keys, values, context.visible)
        dropout = self.dropout if self.training else 0.0
        return self.kernel(queries, self.shared(keys), self.shared(values), context.visible, dropout)

    def shared(self, heads: Float[Tensor, "B G S K"]) -> Float[Tensor, "B H S K"]:
        """Return the keys or values repeated for each query head."""
        sharing = self.n_heads // self.n_kv_heads
        return heads if sharing == 1 else heads.repeat_interleave(sharing, dim=1)
