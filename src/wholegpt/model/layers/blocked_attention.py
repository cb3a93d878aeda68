"""Attention (E4) in blocks that fit a CPU's caches: the training kernel where PyTorch's own kernels are slow.

Shapes: B batch, H heads, N = B·H, T positions, K head width; a block has Q queries and sees S keys.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from wholegpt.model.layers.dropout import keep_bits, masked

SHORTEST_BLOCK = 128
"""Minimum queries per block; with fewer, the products are too small to be fast."""
SCORES_AT_ONCE = 2**20
"""Maximum scores in memory at once beside the saved weights: 2 MB in bfloat16, about the size of a core's
cache.
"""


def blocked_causal_attention(
    queries: Float[Tensor, "B H T K"],
    keys: Float[Tensor, "B H T K"],
    values: Float[Tensor, "B H T K"],
    dropout: float = 0.0,
    visible: Bool[Tensor, "B 1 T T"] | None = None,
) -> Float[Tensor, "B H T K"]:
    """Compute ``attention`` with a causal mask: softmax(Q·Kᵀ/√K + M)·V, in blocks that stay in the CPU's
    caches.

    ``visible``, if given, is a mask per sequence and must be causal.

    Each block of queries attends only to the keys up to its end, for a few heads at a time, so that scores,
    softmax and weighted sum (and their gradients) find their operands in the cache. The weights are saved for
    the backward pass: B·H·T²/2 elements, slightly more for short T, in the dtype of the operands.
    """
    batch, heads, length, width = queries.shape
    merged = (batch * heads, length, width)
    mixed = _BlockedAttention.apply(
        queries.reshape(merged), keys.reshape(merged), values.reshape(merged), dropout, visible
    )
    assert isinstance(mixed, Tensor)
    return mixed.view(batch, heads, length, width)


def query_block(length: int) -> int:
    """Return how many queries share one product; keys after the last of them are skipped."""
    return max(SHORTEST_BLOCK, length // 4)


def _tiles(n: int, length: int) -> Iterator[tuple[slice, slice, slice]]:
    """Yield (heads, queries, keys) of each product; the last queries, which see all keys, come first."""
    block = query_block(length)
    for start in reversed(range(0, length, block)):
        end = min(start + block, length)
        heads = max(1, SCORES_AT_ONCE // ((end - start) * end))
        for first in range(0, n, heads):
            yield slice(first, min(first + heads, n)), slice(start, end), slice(0, end)


def _add_into(total: Tensor, tile: tuple[slice, slice], value: Tensor) -> None:
    """Compute ``total[tile] += value``; the first tile of each head covers all keys and is assigned."""
    heads, keys = tile
    if keys.stop == total.shape[1]:
        total[heads] = value
    else:
        total[heads, keys] += value


class _BlockedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Float[Tensor, "N T K"],
        keys: Float[Tensor, "N T K"],
        values: Float[Tensor, "N T K"],
        dropout: float,
        visible: Bool[Tensor, "B 1 T T"] | None,
    ) -> Float[Tensor, "N T K"]:
        n, length, width = queries.shape
        masked_keys = None if visible is None else ~visible[:, 0]
        sequence = torch.arange(n, device=queries.device) // (
            n // len(masked_keys) if masked_keys is not None else 1
        )
        mixed = torch.empty_like(queries)
        saved: list[Tensor] = []
        masks: dict[int, Tensor] = {}
        for heads, rows, seen in _tiles(n, length):
            if rows.start not in masks:
                masks[rows.start] = _causal_mask(rows, queries)
            scores = torch.baddbmm(
                masks[rows.start],
                queries[heads, rows],
                keys[heads, seen].transpose(1, 2),
                alpha=1 / math.sqrt(width),
            )
            if masked_keys is not None:
                scores.masked_fill_(masked_keys[sequence[heads], rows, seen], float("-inf"))
            weights = torch.softmax(scores, dim=-1)
            saved.append(weights)
            if dropout:
                saved.append(keep_bits(weights, dropout))
                weights = masked(weights, saved[-1])
            mixed[heads, rows] = torch.bmm(weights, values[heads, seen])
        ctx.save_for_backward(queries, keys, values, *saved)
        ctx.dropout = dropout
        return mixed.div_(1 - dropout) if dropout else mixed

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Float[Tensor, "N T K"]
    ) -> tuple[Tensor, Tensor, Tensor, None, None]:
        (gradient,) = gradients
        queries, keys, values, *saved = ctx.saved_tensors
        dropout: float = ctx.dropout
        n, length, width = queries.shape
        if dropout:
            gradient = gradient / (1 - dropout)
        of_queries, of_keys, of_values = (torch.empty_like(queries) for _ in range(3))
        kept = iter(saved)
        for heads, rows, seen in _tiles(n, length):
            weights = next(kept)
            of_mixed = gradient[heads, rows]
            of_weights = torch.bmm(of_mixed, values[heads, seen].transpose(1, 2))
            used = weights
            if dropout:
                bits = next(kept)
                used, of_weights = masked(weights, bits), masked(of_weights, bits)
            _add_into(of_values, (heads, seen), torch.bmm(used.transpose(1, 2), of_mixed))
            of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            of_queries[heads, rows] = torch.bmm(of_scores, keys[heads, seen])
            _add_into(of_keys, (heads, seen), torch.bmm(of_scores.transpose(1, 2), queries[heads, rows]))
        scale = 1 / math.sqrt(width)
        return of_queries.mul_(scale), of_keys.mul_(scale), of_values, None, None


def _causal_mask(rows: slice, like: Tensor) -> Float[Tensor, "Q S"]:
    """Return a mask of 0 at a query's position and earlier ones, −∞ at later ones."""
    shape = (rows.stop - rows.start, rows.stop)
    return torch.full(shape, float("-inf"), dtype=like.dtype, device=like.device).triu(1 + rows.start)
