"""Attention masks: causal, sliding window and strided.

Shapes: T positions.
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from wholegpt.settings.choices import Attention
from wholegpt.settings.schema import ModelConfig


def visible_keys(length: int, config: ModelConfig, device: torch.device) -> Bool[Tensor, "T T"]:
    """Return which keys each query of a whole sequence sees."""
    if config.attention is Attention.full and length <= config.context_length:
        return torch.ones(length, length, dtype=torch.bool, device=device).tril()
    positions = torch.arange(length, device=device)
    return is_seen(positions[:, None] - positions, config)


def is_seen(distance: Int[Tensor, "*B"], config: ModelConfig) -> Bool[Tensor, "*B"]:
    """Return whether a query sees the key at ``distance`` positions before it.

    full: 0 ≤ d < τ. sliding_window: 0 ≤ d < W. strided: 0 ≤ d < τ, and d < W or d a multiple of W (Child et
    al. 2019, section 4.3, both patterns in each head).
    """
    window = config.attention_window
    if config.attention is Attention.sliding_window:
        return (distance >= 0) & (distance < window)
    within = (distance >= 0) & (distance < config.context_length)
    if config.attention is Attention.strided:
        return within & ((distance < window) | (distance % window == 0))
    return within
