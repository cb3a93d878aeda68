"""Logits processors: pure functions, one equation each, applied before a token is drawn.

Logits have shape (V,) for one sequence, or (B, V) where a processor does not depend on the tokens. ``token_ids`` are
the tokens of a sequence so far, the prompt included; ``generated`` are those after the prompt.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

NEVER = float("-inf")
INVALID_LOGITS = (
    "the model produces NaN or infinite logits for a text; its weights are damaged or training diverged"
)


def are_valid_logits(logits: Float[Tensor, "*B V"]) -> Bool[Tensor, "*B"]:
    """Return whether a token can be drawn from each row: no logit is NaN or +∞, and not all are −∞.

    The maximum decides: PyTorch's ``amax`` returns NaN or +∞ if there is one.
    """
    return logits.amax(dim=-1).isfinite()


def penalize_repetition(
    logits: Float[Tensor, " V"], token_ids: Sequence[int], penalty: float
) -> Float[Tensor, " V"]:
    """Compute l/θ if l > 0 and l·θ if l < 0, for every token in the sequence (Keskar et al. 2019, section
    4.1).
    """
    seen = torch.tensor(sorted(set(token_ids)), dtype=torch.long)
    of_seen = logits[seen]
    return logits.index_put((seen,), torch.where(of_seen > 0, of_seen / penalty, of_seen * penalty))


def penalize_frequency(
    logits: Float[Tensor, " V"], generated: Sequence[int], frequency: float, presence: float
) -> Float[Tensor, " V"]:
    """Compute l − c·α_f − [c > 0]·α_p, where c counts the token in ``generated`` (OpenAI's parameters of
    these names).
    """
    ids, counts = torch.tensor(generated, dtype=torch.long).unique(return_counts=True)
    return logits.index_add(0, ids, -(frequency * counts + presence).to(logits.dtype))


def ends_of_repeated_ngrams(token_ids: Sequence[int], size: int) -> list[int]:
    """Return the tokens that would complete an n-gram of ``size`` tokens already in the sequence (Paulus et
    al. 2017).
    """
    end = list(token_ids[len(token_ids) - size + 1 :]) if size > 1 else []
    starts = range(len(token_ids) - size + 1)
    return [token_ids[at + size - 1] for at in starts if list(token_ids[at : at + size - 1]) == end]


def forbid(logits: Float[Tensor, "*B V"], token_ids: Sequence[int]) -> Float[Tensor, "*B V"]:
    """Set the logits of ``token_ids`` to −∞."""
    return logits.index_fill(-1, torch.tensor(list(token_ids), dtype=torch.long), NEVER)


def keep_allowed(logits: Float[Tensor, " V"], allowed: Bool[Tensor, " V"]) -> Float[Tensor, " V"]:
    """Set logits to −∞ where not ``allowed``."""
    return logits.masked_fill(~allowed, NEVER)


def add_bias(logits: Float[Tensor, " V"], bias: Sequence[tuple[int, float]]) -> Float[Tensor, " V"]:
    """Compute l + b for each token that has a bias b."""
    ids, values = zip(*bias, strict=True)
    return logits.index_add(0, torch.tensor(ids, dtype=torch.long), torch.tensor(values, dtype=logits.dtype))


def scale_by_temperature(logits: Float[Tensor, "*B V"], temperature: float) -> Float[Tensor, "*B V"]:
    """Compute (l − max l) / T in float64, so that no T overflows: greedy as T → 0, uniform as T → ∞."""
    precise = logits.double()
    return (precise - precise.amax(-1, keepdim=True)) / temperature


def keep_top_k(logits: Float[Tensor, "*B V"], k: int) -> Float[Tensor, "*B V"]:
    """Set all logits below the k-th largest to −∞ (Fan et al. 2018, section 5.1); ties with it are kept."""
    least = torch.topk(logits, min(k, logits.shape[-1])).values[..., -1:]
    return logits.masked_fill(logits < least, NEVER)


def keep_top_p(logits: Float[Tensor, "*B V"], p: float) -> Float[Tensor, "*B V"]:
    """Set logits outside the nucleus to −∞ (Holtzman et al. 2020).

    The nucleus is the smallest set of most likely tokens with a probability of at least p. Ties with its last
    token are kept.
    """
    probabilities, vocab_size = torch.softmax(logits, dim=-1), logits.shape[-1]
    candidates = min(256, vocab_size)
    while True:  # the nucleus is usually small, and sorting the whole vocabulary is slow
        largest = torch.topk(probabilities, candidates).values
        inside = (largest.cumsum(-1) < p).sum(-1, keepdim=True)  # tokens before the last one
        if candidates == vocab_size or bool((inside < candidates).all()):
            break
        candidates = min(8 * candidates, vocab_size)
    least = largest.gather(-1, inside.clamp_max(candidates - 1))
    return logits.masked_fill(probabilities < least, NEVER)


def keep_min_p(logits: Float[Tensor, "*B V"], share: float) -> Float[Tensor, "*B V"]:
    """Set logits to −∞ where p < ``share`` · max p (Nguyen et al. 2024)."""
    probabilities = torch.softmax(logits, dim=-1)
    return logits.masked_fill(probabilities < share * probabilities.amax(-1, keepdim=True), NEVER)
