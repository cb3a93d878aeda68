"""From logits to a token. Logits are of shape (V,), for one sequence."""

import torch
from jaxtyping import Float
from torch import Tensor

from wholegpt.config import GenerationConfig


def scale_by_temperature(logits: Float[Tensor, " V"], temperature: float) -> Float[Tensor, " V"]:
    """logits / T, less their largest, in float64, so that no T overflows: greedy as T → 0, uniform as T → ∞."""
    precise = logits.double()
    return (precise - precise.max()) / temperature


def keep_top_k(logits: Float[Tensor, " V"], k: int) -> Float[Tensor, " V"]:
    """−∞ for all but the k largest logits (Fan et al. 2018, section 5.1); ties go to the smaller id."""
    order = torch.argsort(logits, descending=True, stable=True)
    return logits.index_fill(0, order[k:], float("-inf"))


def keep_top_p(logits: Float[Tensor, " V"], p: float) -> Float[Tensor, " V"]:
    """−∞ outside the nucleus: the likeliest tokens whose probabilities first reach p (Holtzman et al. 2020)."""
    order = torch.argsort(logits, descending=True, stable=True)
    probabilities = torch.softmax(logits, dim=-1)[order]
    before = probabilities.cumsum(0) - probabilities
    outside = before >= p
    outside[0] = False
    return logits.index_fill(0, order[outside], float("-inf"))


def next_token_probabilities(logits: Float[Tensor, " V"], config: GenerationConfig) -> Float[Tensor, " V"]:
    """The distribution that the next token is drawn from: temperature, then top-k, then top-p."""
    logits = scale_by_temperature(logits, config.temperature)
    if 0 < config.top_k < len(logits):
        logits = keep_top_k(logits, config.top_k)
    if config.top_p < 1:
        logits = keep_top_p(logits, config.top_p)
    return torch.softmax(logits, dim=-1)


def choose_token(logits: Float[Tensor, " V"], config: GenerationConfig, generator: torch.Generator) -> int:
    """One token id: the likeliest at temperature 0, else drawn with ``generator``."""
    if config.temperature == 0:
        return int(logits.argmax())
    probabilities = next_token_probabilities(logits, config)
    return int(torch.multinomial(probabilities, 1, generator=generator))
