"""Classifier-free guidance on control codes (Ho and Salimans 2022; for text Sanchez et al. 2023).

Shapes: B sequences, T tokens of each, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from wholegpt.errors import ConfigError
from wholegpt.model.interface import Cache, CausalLanguageModel
from wholegpt.runtime import at_least_float32
from wholegpt.settings.schema import GenerationConfig
from wholegpt.tokenizers import Tokenizer

MOST_GUIDANCE = 20.0


@dataclass(frozen=True)
class GuidedCache:
    """Caches of the same texts with and without their header."""

    headed: Cache
    plain: Cache

    @property
    def can_rewind(self) -> bool:
        """Return whether both caches can be cut to any shorter length."""
        return self.headed.can_rewind

    @property
    def padded_capacity(self) -> int:
        """Return 0: padding is not supported, because the lengths of ``plain`` follow from those of ``headed``."""
        return 0

    def can_rewind_to(self, row: int, length: int) -> bool:
        """Return whether both caches can be cut to ``length`` tokens."""
        plain = max(0, length - int(self.headed.lengths[row] - self.plain.lengths[row]))
        return self.headed.can_rewind_to(row, length) and self.plain.can_rewind_to(row, plain)

    @property
    def lengths(self) -> Int[Tensor, " B"]:
        """Return the numbers of cached tokens, header included; those without header follow from them."""
        return self.headed.lengths

    def rows(self, first: int, last: int) -> "GuidedCache":
        """Return sequences ``first`` to ``last`` − 1 as a view of the same memory."""
        return GuidedCache(self.headed.rows(first, last), self.plain.rows(first, last))

    def reorder(self, sources: Sequence[int]) -> None:
        """Replace sequence i by sequence ``sources[i]``."""
        self.headed.reorder(sources)
        self.plain.reorder(sources)

    def copy_row(self, source: int, target: int, length: int | None = None) -> None:
        """Copy sequence ``source`` to ``target``, or only its first ``length`` tokens."""
        self.headed.copy_row(source, target, length)
        self.plain.copy_row(source, target)

    def clear(self) -> None:
        """Remove all tokens."""
        self.headed.clear()
        self.plain.clear()

    def repeated(self, batch_size: int, capacity: int) -> "GuidedCache":
        """Return a cache for ``batch_size`` copies of this single sequence."""
        return GuidedCache(
            self.headed.repeated(batch_size, capacity), self.plain.repeated(batch_size, capacity)
        )


class GuidedModel:
    """A model with the logits l = l₀ + γ·(l₁ − l₀), where l₁ has a header before the text and l₀ has none.

    γ = 1 is the model itself. A larger γ follows the control codes more closely and is less varied. Each
    token is computed twice.
    """

    def __init__(
        self, model: CausalLanguageModel, end_of_text_id: int, header_tokens: int, guidance: float
    ) -> None:
        """Guide texts that start with end-of-text and a header of ``header_tokens`` tokens; the others have
        end-of-text only.
        """
        self._model, self._end_of_text_id = model, end_of_text_id
        self._skipped, self._guidance = header_tokens, guidance
        self.vocab_size, self.context_length = model.vocab_size, model.context_length
        self.ends_at_context = model.ends_at_context

    def __call__(
        self, token_ids: Int[Tensor, "B T"], cache: GuidedCache | None = None
    ) -> Float[Tensor, "B T V"]:
        """Return guided logits; within the header, the model's own."""
        plain_ids = self._without_header(token_ids, cache)
        logits = at_least_float32(self._model(token_ids, cache and cache.headed))
        if length := plain_ids.shape[1]:
            plain = at_least_float32(self._model(plain_ids, cache and cache.plain))
            logits[:, -length:] = plain.lerp(logits[:, -length:], self._guidance)
        return logits

    def logits_at(
        self, token_ids: Int[Tensor, "B T"], positions: Tensor, cache: GuidedCache | None = None
    ) -> Float[Tensor, "N V"]:
        """Return the logits at the selected ``positions``."""
        return self(token_ids, cache)[positions]

    def prefill(self, token_ids: Int[Tensor, "B T"], cache: GuidedCache) -> None:
        """Extend ``cache`` by tokens without computing their logits."""
        plain_ids = self._without_header(token_ids, cache)
        self._model.prefill(token_ids, cache.headed)
        if plain_ids.shape[1]:
            self._model.prefill(plain_ids, cache.plain)

    def cache_bytes(self, batch_size: int, capacity: int) -> int:
        """Return the bytes of a cache of this size."""
        return 2 * self._model.cache_bytes(batch_size, capacity)

    def new_cache(self, batch_size: int, capacity: int = 0) -> GuidedCache:
        """Return an empty cache for texts with and without header."""
        headed, plain = (self._model.new_cache(batch_size, capacity) for _ in range(2))
        return GuidedCache(headed, plain)

    def _without_header(self, token_ids: Int[Tensor, "B T"], cache: GuidedCache | None) -> Int[Tensor, "B R"]:
        """Return the tokens without the header: end-of-text replaces the header's last token, earlier ones
        are dropped.
        """
        starts = torch.zeros(len(token_ids), dtype=torch.long) if cache is None else cache.lengths
        if cache is not None:
            cache.plain.lengths[:] = (starts - self._skipped).clamp_min(0)
        left = max(0, self._skipped - int(starts.min()))
        assert not left or int(starts.min()) == int(starts.max())
        positions = starts[:, None] + torch.arange(token_ids.shape[1])
        last = (positions == self._skipped).to(token_ids.device)
        return token_ids.masked_fill(last, self._end_of_text_id)[:, left:]


def guided(
    model: CausalLanguageModel,
    tokenizer: Tokenizer,
    header: str,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    guidance: float,
) -> CausalLanguageModel:
    """Return ``model`` guided by the ``header`` that ``prompts`` start with; for a ``guidance`` of 1,
    ``model`` itself.

    Raises ``ConfigError`` for a value out of range, without a header, and for texts that exceed the context
    and would lose their header.
    """
    if guidance == 1:
        return model
    if not 1 <= guidance <= MOST_GUIDANCE:
        raise ConfigError(f"guidance is {guidance}; expected 1, which disables it, to {MOST_GUIDANCE:g}")
    if not header:
        raise ConfigError("guidance amplifies control codes; set control too")
    if not tokenizer.has_end_of_text:
        raise ConfigError(
            "guidance needs an end-of-text token before the header, which this vocabulary does not have"
        )
    longest = max(map(len, prompts), default=0) + config.max_tokens
    if longest > model.context_length:
        raise ConfigError(
            f"prompt and max_tokens take {longest} tokens; with guidance they must fit the {model.context_length} "
            "that the model sees; try a smaller max_tokens"
        )
    header_ids = tokenizer.encode(header)
    if any(list(one[1 : 1 + len(header_ids)]) != header_ids for one in prompts):
        raise ConfigError(
            "the prompt and the control line before it share a token, so guidance cannot leave that line out; "
            "start the prompt with a letter"
        )
    return GuidedModel(model, tokenizer.end_of_text_id, len(header_ids), guidance)
