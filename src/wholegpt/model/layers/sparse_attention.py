"""Attention (E4) to a subset of the keys, without computing the other scores.

Shapes: B batch, H heads, T positions, K head width, W window, N = T/W blocks of queries.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from wholegpt.model.layers.dropout import dropout as drop


def sparse_attention(
    queries: Float[Tensor, "B H T K"],
    keys: Float[Tensor, "B H T K"],
    values: Float[Tensor, "B H T K"],
    window: int,
    strided: bool,
    dropout: float = 0.0,
) -> Float[Tensor, "B H T K"]:
    """Compute ``attention`` where each query sees the last W keys, its own included, and if ``strided`` every
    W-th before.

    Queries in blocks of W attend to the keys of their own and the previous block: 2·W scores per query
    instead of T, and T/W more if strided.
    """
    batch, heads, length, width = queries.shape
    padding = -length % window
    blocks = (batch, heads, -1, window, width)
    of_blocks, own_keys, own_values = (
        F.pad(x, (0, 0, 0, padding)).view(blocks) for x in (queries / math.sqrt(width), keys, values)
    )
    near = [torch.cat((F.pad(x, (0, 0, 0, 0, 1, 0))[:, :, :-1], x), dim=3) for x in (own_keys, own_values)]
    scores = of_blocks @ near[0].transpose(-2, -1)
    scores = scores.masked_fill(~_near(scores), float("-inf"))
    if strided:  # the keys of earlier blocks at the query's offset in its block
        far = torch.einsum("bhnwk,bhmwk->bhnwm", of_blocks, own_keys)
        earlier = torch.ones(far.shape[2], far.shape[2], dtype=torch.bool, device=far.device).tril(-1)
        scores = torch.cat((scores, far.masked_fill(~earlier[:, None], float("-inf"))), dim=-1)
    weights = drop(torch.softmax(scores, dim=-1), dropout).to(values.dtype)
    mixed = weights[..., : 2 * window] @ near[1]
    if strided:
        mixed = mixed + torch.einsum("bhnwm,bhmwk->bhnwk", weights[..., 2 * window :], own_values)
    return mixed.reshape(batch, heads, -1, width)[:, :, :length]


def _near(scores: Float[Tensor, "B H N W S"]) -> Bool[Tensor, "N W S"]:
    """Return which of the 2·W keys of its own and the previous block a query sees: 0 to W − 1 positions
    before it.
    """
    n_blocks, window = scores.shape[2:4]
    positions = torch.arange(2 * window, device=scores.device)
    distance = positions[window:, None] - positions
    seen = ((distance >= 0) & (distance < window)).repeat(n_blocks, 1, 1)
    seen[0, :, :window] = False
    return seen
