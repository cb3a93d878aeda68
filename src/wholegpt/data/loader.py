"""Windows of tokens in an order that depends only on the seed and the step.

Shapes: B windows in a batch, T positions.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from wholegpt.config import TrainingConfig
from wholegpt.data.shards import TokenShards
from wholegpt.errors import DataError
from wholegpt.runtime import mix_seed


@dataclass(frozen=True)
class Batch:
    """Inputs and what they should predict (teacher forcing)."""

    token_ids: Int[Tensor, "B T"]
    targets: Int[Tensor, "B T"]
    """The token after each position, or ``losses.IGNORED``."""

    def __len__(self) -> int:
        return len(self.token_ids)

    def rows(self, start: int, end: int) -> "Batch":
        """Windows ``start`` to ``end``: a micro-batch."""
        return Batch(self.token_ids[start:end], self.targets[start:end])

    def to(self, device: torch.device) -> "Batch":
        """The batch on ``device``."""
        return Batch(self.token_ids.to(device, non_blocking=True), self.targets.to(device, non_blocking=True))


class WindowLoader:
    """Shuffled windows of τ+1 tokens over a token sequence, forever.

    Each epoch cuts the text anew, from an offset of its own, and permutes its windows; every window
    comes exactly once an epoch. A batch is a function of (seed, step) alone, so those two integers
    are the loader's whole state and nothing needs to be replayed on resume.
    """

    def __init__(self, tokens: TokenShards, context_length: int, training: TrainingConfig, seed: int) -> None:
        if len(tokens) <= context_length:
            raise DataError(
                f"the training text has {len(tokens):,} tokens, fewer than one window of "
                f"{context_length + 1:,}; give more text, or a smaller --model.context-length"
            )
        self.tokens, self.context_length = tokens, context_length
        self.training, self.seed = training, seed
        self.windows_per_epoch = max(1, (len(tokens) - context_length) // context_length)
        self._largest_offset = min(
            context_length - 1, len(tokens) - 1 - self.windows_per_epoch * context_length
        )

    def batch(self, step: int) -> Batch:
        """The windows of optimiser step ``step`` (from 0)."""
        starts = self.window_starts(
            np.arange(windows_before(step, self.training), windows_before(step + 1, self.training))
        )
        windows = np.stack([self.tokens.read(int(start), self.context_length + 1) for start in starts])
        tensor = torch.from_numpy(windows)
        return Batch(tensor[:, :-1], tensor[:, 1:])

    def window_starts(self, places: np.ndarray) -> np.ndarray:
        """First token of the windows at ``places`` in the endless order, shape as ``places``."""
        epochs, indices = np.divmod(places, self.windows_per_epoch)
        starts = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            key = mix_seed(self.seed, int(epoch))
            offset = key % (self._largest_offset + 1)
            order = permute(indices[here], self.windows_per_epoch, key)
            starts[here] = offset + order * self.context_length
        return starts


def windows_before(step: int, training: TrainingConfig) -> int:
    """Windows of all optimiser steps before ``step``.

    The batch has ``batch_size`` windows; where ``initial_batch_size`` is set, the first has that many, and
    each of the first ``batch_growth_steps`` steps as many as an even rise gives.
    """
    first, growth = training.initial_batch_size or training.batch_size, training.batch_growth_steps
    growing = min(step, growth)
    rise = (training.batch_size - first) * growing * (growing - 1) // (2 * growth) if growth else 0
    return growing * first + rise + (step - growing) * training.batch_size


FEISTEL_ROUNDS = 6


def permute(indices: np.ndarray, size: int, key: int) -> np.ndarray:
    """Where each index goes under the permutation of range(``size``) that ``key`` names, in constant memory.

    A Feistel network over the smallest even number of bits that holds ``size``, walked until it
    lands inside (Black and Rogaway 2002, "cycle walking").
    """
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half_bits) - 1)
    shift = np.uint64(half_bits)
    round_keys = np.random.SeedSequence(key).generate_state(FEISTEL_ROUNDS, np.uint64)
    result = indices.astype(np.uint64)
    outside = np.ones(len(result), dtype=bool)
    while outside.any():
        walked = result[outside]
        left, right = walked >> shift, walked & mask
        for round_key in round_keys:
            left, right = right, left ^ (_scramble(right ^ round_key) & mask)
        result[outside] = (left << shift) | right
        outside = result >= size
    return result.astype(np.int64)


def _scramble(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele et al. 2014): every input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
