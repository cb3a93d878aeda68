"""Cross-entropy in its units: perplexity (E15), bits per character or byte (E16)."""

import math


def perplexity(nats_per_token: float) -> float:
    """exp(H), H in nats per token (E15); infinite where it exceeds the largest float."""
    try:
        return math.exp(nats_per_token)
    except OverflowError:
        return math.inf


def nats_to_bits(nats: float) -> float:
    """H / ln 2."""
    return nats / math.log(2)


def bits_per_unit(total_nats: float, units: int) -> float:
    """Bits per character, byte or token (E16): the total in bits over ``units``; not a number where there are none."""
    return nats_to_bits(total_nats) / units if units else math.nan


def uniform_nats(vocab_size: int) -> float:
    """ln V: the entropy of a uniform choice of token, the loss of a model that knows nothing."""
    return math.log(vocab_size)
