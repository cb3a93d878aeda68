"""Units of cross-entropy: perplexity (E15), bits per character or byte (E16)."""

import math


def perplexity(nats_per_token: float) -> float:
    """Compute exp(H), H in nats per token (E15); infinite if it exceeds the largest float."""
    try:
        return math.exp(nats_per_token)
    except OverflowError:
        return math.inf


def nats_to_bits(nats: float) -> float:
    """Compute H / ln 2."""
    return nats / math.log(2)


def bits_per_unit(total_nats: float, units: int) -> float:
    """Compute bits per character, byte or token (E16): the total in bits over ``units``; NaN for 0 units."""
    return nats_to_bits(total_nats) / units if units else math.nan


def uniform_nats(vocab_size: int) -> float:
    """Compute ln V: the entropy of a uniform distribution over tokens, the loss of an untrained model."""
    return math.log(vocab_size)
