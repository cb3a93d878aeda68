"""What may change a model's logits before a token is drawn from them: pure functions, one equation each.

Logits are of shape (V,), for one sequence; ``token_ids`` are what it holds so far, the prompt included, ``written``
what was generated.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

NEVER = float("-inf")
NO_NUMBERS = "the model gives no numbers (NaN or infinite) for a text; its weights are damaged or training has diverged"


def have_numbers(logits: Float[Tensor, "*B V"]) -> Bool[Tensor, "*B"]:
    """Whether a token can be drawn from each row: none is NaN or +∞, and not all are −∞.

    The largest tells: NaN and +∞ are larger than any number, to PyTorch's ``amax``.
    """
    return logits.amax(dim=-1).isfinite()


def penalize_repetition(
    logits: Float[Tensor, " V"], token_ids: Sequence[int], penalty: float
) -> Float[Tensor, " V"]:
    """l/θ where l > 0, l·θ where l < 0, for every token that the sequence holds (Keskar et al. 2019, section 4.1)."""
    seen = torch.tensor(sorted(set(token_ids)), dtype=torch.long)
    of_seen = logits[seen]
    return logits.index_put((seen,), torch.where(of_seen > 0, of_seen / penalty, of_seen * penalty))


def penalize_frequency(
    logits: Float[Tensor, " V"], written: Sequence[int], frequency: float, presence: float
) -> Float[Tensor, " V"]:
    """l − c·α_f − [c > 0]·α_p, c how often the token was written (OpenAI's parameters of these names)."""
    ids, counts = torch.tensor(written, dtype=torch.long).unique(return_counts=True)
    return logits.index_add(0, ids, -(frequency * counts + presence).to(logits.dtype))


def ends_of_repeated_ngrams(token_ids: Sequence[int], size: int) -> list[int]:
    """Tokens that would end a run of ``size`` tokens that the sequence holds already (Paulus et al. 2017)."""
    end = list(token_ids[len(token_ids) - size + 1 :]) if size > 1 else []
    runs = range(len(token_ids) - size + 1)
    return [token_ids[at + size - 1] for at in runs if list(token_ids[at : at + size - 1]) == end]


def forbid(logits: Float[Tensor, " V"], token_ids: Sequence[int]) -> Float[Tensor, " V"]:
    """−∞ for ``token_ids``."""
    return logits.index_fill(0, torch.tensor(list(token_ids), dtype=torch.long), NEVER)


def keep_allowed(logits: Float[Tensor, " V"], allowed: Bool[Tensor, " V"]) -> Float[Tensor, " V"]:
    """−∞ where not ``allowed``."""
    return logits.masked_fill(~allowed, NEVER)


def add_bias(logits: Float[Tensor, " V"], bias: Sequence[tuple[int, float]]) -> Float[Tensor, " V"]:
    """l + b for each token that has a bias b."""
    ids, values = zip(*bias, strict=True)
    return logits.index_add(0, torch.tensor(ids, dtype=torch.long), torch.tensor(values, dtype=logits.dtype))


def scale_by_temperature(logits: Float[Tensor, " V"], temperature: float) -> Float[Tensor, " V"]:
    """l / T, less the largest, in float64, so that no T overflows: greedy as T → 0, uniform as T → ∞."""
    precise = logits.double()
    return (precise - precise.max()) / temperature


def keep_top_k(logits: Float[Tensor, " V"], k: int) -> Float[Tensor, " V"]:
    """−∞ for all that are less than the k-th largest (Fan et al. 2018, section 5.1); equal ones stay together."""
    least = torch.topk(logits, min(k, len(logits))).values[-1]
    return logits.masked_fill(logits < least, NEVER)


def keep_top_p(logits: Float[Tensor, " V"], p: float) -> Float[Tensor, " V"]:
    """−∞ outside the nucleus: the likeliest tokens whose probabilities first reach p (Holtzman et al. 2020).

    Equal ones stay together.
    """
    probabilities = torch.softmax(logits, dim=-1)
    candidates = 256
    while True:  # the nucleus is small most often, and sorting the whole vocabulary slow
        candidates = min(candidates, len(logits))
        largest = torch.topk(probabilities, candidates).values
        outside = largest.cumsum(0) >= p
        if bool(outside[-1]) or candidates == len(logits):
            break
        candidates *= 8
    last = int(outside.long().argmax()) if bool(outside[-1]) else candidates - 1
    return logits.masked_fill(probabilities < largest[last], NEVER)


def keep_min_p(logits: Float[Tensor, " V"], share: float) -> Float[Tensor, " V"]:
    """−∞ where p < ``share`` · max p (Nguyen et al. 2024)."""
    probabilities = torch.softmax(logits, dim=-1)
    return logits.masked_fill(probabilities < share * probabilities.max(), NEVER)
