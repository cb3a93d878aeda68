"""Permutations of large ranges in constant memory, and weighted interleaving."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt64

from wholegpt.seeds import mix_seed

FEISTEL_ROUNDS = 6


def permute(indices: Int[np.ndarray, " N"], size: int, key: int) -> Int[np.ndarray, " N"]:
    """Return the image of each index under the permutation of range(``size``) with this ``key``, in constant
    memory.

    A Feistel network over the smallest even number of bits that holds ``size``, applied until the result is
    inside (Black and Rogaway 2002, "cycle walking").
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
            left, right = right, left ^ (scramble(right ^ round_key) & mask)
        result[outside] = (left << shift) | right
        outside = result >= size
    return result.astype(np.int64)


def endless_order(start: int, count: int, size: int, seed: int) -> list[int]:
    """Return ``count`` indices from ``start`` on in an endless sequence that permutes ``size`` indices in
    every epoch.
    """
    epochs, indices = np.divmod(np.arange(start, start + count), size)
    chosen = np.empty_like(indices)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        chosen[here] = permute(indices[here], size, mix_seed(seed, int(epoch), 4))
    return chosen.tolist()


def held_out_indices(size: int, fraction: float, seed: int) -> set[int]:
    """Draw ``fraction`` of ``size`` indices by ``seed``."""
    return set(permute(np.arange(size), size, mix_seed(seed, 0, 5))[: round(size * fraction)].tolist())


def scramble(x: UInt64[np.ndarray, " N"]) -> UInt64[np.ndarray, " N"]:
    """Apply SplitMix64's finalizer (Steele et al. 2014): every input bit affects every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniform(numbers: Int[np.ndarray, " N"], key: int) -> Float[np.ndarray, " N"]:
    """Return a pseudo-random number in [0, 1) for each of ``indices``, determined by ``key``."""
    return scramble(scramble(numbers.astype(np.uint64)) ^ np.uint64(key % 2**64)) / 2.0**64


WEIGHT_BITS = 20


def interleave(
    indices: Int[np.ndarray, " N"], weights: Sequence[float]
) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """Return for each index of an endless mixture its source, and its index in the order of that source.

    The first source takes floor(n·w₁/Σw) of the first n, evenly spaced, the second its part of the others,
    and so on. Every source is read in order, nothing twice, and among any n consecutive indices its share is
    wᵢ/Σw, up to about one index for each source before it.
    """
    source, within = np.zeros_like(indices), indices.copy()
    undecided = np.ones(len(indices), dtype=bool)
    for number, weight in enumerate(weights):
        share = round(weight / sum(weights[number:]) * 2**WEIGHT_BITS) if weight else 0
        before, after = within * share >> WEIGHT_BITS, (within + 1) * share >> WEIGHT_BITS
        here = undecided & (after > before)
        source[here] = number
        within = np.where(here, before, np.where(undecided, within - before, within))
        undecided &= ~here
    return source, within
