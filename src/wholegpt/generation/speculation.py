"""Speculative decoding: draft tokens that the model verifies in one forward pass (Leviathan et al. 2023).

A draft token is accepted if it equals the token drawn from the model's own logits with the request's own
random number for that position. The text is therefore the same as without draft tokens, token for token. Only
the last bits of the logits may differ, as in a batch.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch

from wholegpt.errors import NumericsError
from wholegpt.generation.processors import INVALID_LOGITS, are_valid_logits
from wholegpt.generation.sampling import NothingLeftError, Sampler
from wholegpt.model.interface import Cache, CausalLanguageModel

MAX_DRAFT_TOKENS = 15
"""Most draft tokens per step.

A matrix product with 16 rows takes little longer than one with a single row, because both mostly read the weights.
"""
LONGEST_PAUSE = 64
"""Longest pause, in tokens, after many rejected drafts."""


@runtime_checkable
class Drafter(Protocol):
    """An object that proposes draft tokens for one text."""

    def propose(self, token_ids: Sequence[int], most: int) -> list[int]:
        """Return up to ``most`` tokens that may follow ``token_ids``, which are the prompt and the generated
        tokens.
        """
        ...

    def update(self, drafted: int, accepted: int) -> None:
        """Record how many of the last draft tokens were accepted."""
        ...


class DraftLength:
    """How many tokens to draft: doubles after full acceptance, pauses after rejection."""

    def __init__(self, most: int = MAX_DRAFT_TOKENS) -> None:
        self._most, self._length, self._pause, self._misses = most, min(4, most), 0, 0

    def length(self) -> int:
        """Return how many tokens to draft now."""
        if self._pause:
            self._pause -= 1
            return 0
        return self._length

    def update(self, drafted: int, accepted: int) -> None:
        """Adapt the length to how many draft tokens were accepted."""
        if accepted:
            self._misses = 0
            self._length = min(2 * drafted, self._most) if accepted == drafted else max(2, accepted)
        elif drafted:
            self._misses += 1
            self._length = 2
            self._pause = min(2**self._misses, LONGEST_PAUSE)


class PromptLookup:
    """Prompt lookup: propose what followed when the last tokens occurred earlier (Saxena 2023, "Prompt Lookup
    Decoding").
    """

    def __init__(self, size: int = 3) -> None:
        """Set up a lookup that requires ``size`` matching tokens."""
        self._size, self._draft_length = size, DraftLength()
        self._ends: dict[tuple[int, ...], int] = {}
        self._known = 0

    def propose(self, token_ids: Sequence[int], most: int) -> list[int]:
        """Return the tokens that followed the last match. If too few tokens follow it, they are repeated."""
        for end in range(max(self._known, self._size), len(token_ids)):
            self._ends[tuple(token_ids[end - self._size : end])] = end
        self._known = len(token_ids)
        found = self._ends.get(tuple(token_ids[-self._size :]))
        if found is None:
            return []
        continuation = list(token_ids[found:])
        for index in range(length := min(self._draft_length.length(), most)):
            continuation.append(continuation[index])
        return continuation[:length]

    def update(self, drafted: int, accepted: int) -> None:
        """Adapt the number of draft tokens."""
        self._draft_length.update(drafted, accepted)


class DraftModel:
    """A draft model: proposes what a smaller model of the same vocabulary would generate with the same random
    numbers.
    """

    def __init__(self, model: CausalLanguageModel, sampler: Sampler, device: torch.device) -> None:
        """Set up the draft model with the ``sampler`` of the request, which has its settings and prompt."""
        self._model, self._sampler, self._device = model, sampler, device
        # created with the first draft: with many texts at once, few are drafted
        self._cache: Cache | None = None
        self._cached_ids: list[int] = []
        self._draft_length = DraftLength(8)

    def propose(self, token_ids: Sequence[int], most: int) -> list[int]:
        """Return what the draft model would generate; nothing if the text exceeds its context."""
        length = min(self._draft_length.length(), most, self._model.context_length - len(token_ids))
        if length <= 0:
            return []
        n_prompt = len(self._sampler.prompt)
        known = common_length(self._cached_ids, token_ids[:-1])
        capacity = min(self._model.context_length, n_prompt + self._sampler.config.max_tokens)
        cache = self._cache = self._cache or self._model.new_cache(1, capacity)
        cache.lengths[0] = known
        if len(token_ids) - known > 1:  # without logits, which have V entries per token
            self._model.prefill(torch.tensor([token_ids[known:-1]], device=self._device), cache)
        pending, drafted = [token_ids[-1]], list[int]()
        while len(drafted) < length:
            logits = self._model(torch.tensor([pending], device=self._device), cache)[0, -1]
            if not are_valid_logits(logits):
                raise NumericsError(f"draft: {INVALID_LOGITS}")
            generated = [*token_ids[n_prompt:], *drafted]
            try:
                pending = [self._sampler.draw(logits.float().cpu(), generated).token_id]
            except NothingLeftError:  # of this model; the model that verifies may continue
                break
            drafted += pending
            if self._sampler.ends(pending[0]):
                break
        self._cached_ids = [*token_ids, *drafted[:-1]]
        return drafted

    def update(self, drafted: int, accepted: int) -> None:
        """Adapt the number of draft tokens."""
        self._draft_length.update(drafted, accepted)


def common_length(left: Sequence[int], right: Sequence[int]) -> int:
    """Return the length of the common prefix."""
    return next(
        (i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right))
    )
