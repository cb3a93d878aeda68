"""Guidance: what a header changes, exaggerated (Ho and Salimans 2022; for text Sanchez et al. 2023).

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
    """What a model has read of the same texts with and without their header."""

    headed: Cache
    plain: Cache

    @property
    def rewinds(self) -> bool:
        """Where both do."""
        return self.headed.rewinds

    def can_forget(self, row: int, length: int) -> bool:
        """Where both can."""
        plain = max(0, length - int(self.headed.lengths[row] - self.plain.lengths[row]))
        return self.headed.can_forget(row, length) and self.plain.can_forget(row, plain)

    @property
    def lengths(self) -> Int[Tensor, " B"]:
        """Tokens read, the header's included; those without follow from them."""
        return self.headed.lengths

    def rows(self, first: int, last: int) -> "GuidedCache":
        """Sequences ``first`` to ``last`` − 1 in the same memory."""
        return GuidedCache(self.headed.rows(first, last), self.plain.rows(first, last))

    def reorder(self, sources: Sequence[int]) -> None:
        """Make sequence i hold what sequence ``sources[i]`` does."""
        self.headed.reorder(sources)
        self.plain.reorder(sources)

    def copy_row(self, source: int, target: int, length: int | None = None) -> None:
        """Make sequence ``target`` hold what ``source`` does, or its first ``length`` tokens."""
        self.headed.copy_row(source, target, length)
        self.plain.copy_row(source, target)

    def clear(self) -> None:
        """Forget everything."""
        self.headed.clear()
        self.plain.clear()

    def repeated(self, batch_size: int, capacity: int) -> "GuidedCache":
        """A cache for ``batch_size`` sequences that all begin with these."""
        return GuidedCache(
            self.headed.repeated(batch_size, capacity), self.plain.repeated(batch_size, capacity)
        )


class GuidedModel:
    """The logits l = l₀ + γ·(l₁ − l₀), of l₁ with a header before the text and l₀ without.

    γ = 1 is the model itself; more makes a text more of what was asked for, and less varied. Each token is read twice.
    """

    def __init__(
        self, model: CausalLanguageModel, end_of_text_id: int, header_tokens: int, guidance: float
    ) -> None:
        """Texts begin with end-of-text and a header of so many tokens, the others with end-of-text alone."""
        self._model, self._end_of_text_id = model, end_of_text_id
        self._skipped, self._guidance = header_tokens, guidance
        self.vocab_size, self.context_length = model.vocab_size, model.context_length
        self.ends_at_context = model.ends_at_context

    def __call__(
        self, token_ids: Int[Tensor, "B T"], cache: GuidedCache | None = None
    ) -> Float[Tensor, "B T V"]:
        """Guided logits; within the header the model's own."""
        plain_ids = self._without_header(token_ids, cache)
        logits = at_least_float32(self._model(token_ids, cache and cache.headed))
        if length := plain_ids.shape[1]:
            plain = at_least_float32(self._model(plain_ids, cache and cache.plain))
            logits[:, -length:] = plain.lerp(logits[:, -length:], self._guidance)
        return logits

    def logits_at(
        self, token_ids: Int[Tensor, "B T"], places: Tensor, cache: GuidedCache | None = None
    ) -> Float[Tensor, "N V"]:
        """The logits of a call at some ``places``."""
        return self(token_ids, cache)[places]

    def read(self, token_ids: Int[Tensor, "B T"], cache: GuidedCache) -> None:
        """Extend ``cache`` by tokens after which nothing is predicted."""
        plain_ids = self._without_header(token_ids, cache)
        self._model.read(token_ids, cache.headed)
        if plain_ids.shape[1]:
            self._model.read(plain_ids, cache.plain)

    def cache_bytes(self, batch_size: int, capacity: int) -> int:
        """Bytes of such a cache."""
        return 2 * self._model.cache_bytes(batch_size, capacity)

    def new_cache(self, batch_size: int, capacity: int = 0) -> GuidedCache:
        """An empty cache for texts with and without header."""
        headed, plain = (self._model.new_cache(batch_size, capacity) for _ in range(2))
        return GuidedCache(headed, plain)

    def _without_header(self, token_ids: Int[Tensor, "B T"], cache: GuidedCache | None) -> Int[Tensor, "B R"]:
        """What is read without: end-of-text in place of the header's last token, nothing before it."""
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
    """``model`` guided by the ``header`` that ``prompts`` begin with; at a ``guidance`` of 1 ``model`` itself.

    Raises ``ConfigError`` out of range, without a header, and for texts that leave the context, and so their header.
    """
    if guidance == 1:
        return model
    if not 1 <= guidance <= MOST_GUIDANCE:
        raise ConfigError(f"guidance is {guidance}; expected 1, which is none, to {MOST_GUIDANCE:g}")
    if not header:
        raise ConfigError("guidance exaggerates what control asks for; give control too")
    if not tokenizer.has_end_of_text:
        raise ConfigError(
            "guidance needs an end-of-text token before the header, which this vocabulary has not"
        )
    longest = max(map(len, prompts), default=0) + config.max_tokens
    if longest > model.context_length:
        raise ConfigError(
            f"prompt and max_tokens take {longest} tokens; with guidance they have to fit the {model.context_length} "
            "that the model sees; try fewer max_tokens"
        )
    header_ids = tokenizer.encode(header)
    if any(list(one[1 : 1 + len(header_ids)]) != header_ids for one in prompts):
        raise ConfigError(
            "the prompt and the line of control before it share a token, so guidance cannot leave that line out; "
            "begin the prompt with a letter"
        )
    return GuidedModel(model, tokenizer.end_of_text_id, len(header_ids), guidance)
