"""Speculative decoding: guesses of the next tokens, which the model then reads at once (Leviathan et al. 2023).

A guess is kept where it is the token that is drawn anyway, from the model's own logits and the request's own random
number for that place. So the text is the one that would be written without guesses, token for token; only the last
bits of the logits may differ, as in a batch.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch

from wholegpt.errors import NumericsError
from wholegpt.generation.processors import NO_NUMBERS, have_numbers
from wholegpt.generation.sampling import NothingLeftError, Sampler
from wholegpt.model.interface import Cache, CausalLanguageModel

MOST_GUESSES = 15
"""A product of 16 rows takes little longer than one of a single row, which waits for the weights."""
LONGEST_PAUSE = 64
"""Tokens without guesses after many that were wrong."""


@runtime_checkable
class Drafter(Protocol):
    """Guesses how one text goes on."""

    def guess(self, token_ids: Sequence[int], most: int) -> list[int]:
        """Up to ``most`` tokens that may follow ``token_ids``, the prompt and all that was written."""
        ...

    def learn(self, guessed: int, right: int) -> None:
        """Hear how many of the last guesses were right."""
        ...


class Eagerness:
    """How many tokens to guess: twice as many after guesses that were all right, pauses after wrong ones."""

    def __init__(self, most: int = MOST_GUESSES) -> None:
        self._most, self._length, self._pause, self._misses = most, min(4, most), 0, 0

    def length(self) -> int:
        """How many now."""
        if self._pause:
            self._pause -= 1
            return 0
        return self._length

    def learn(self, guessed: int, right: int) -> None:
        """Adapt to how many were right."""
        if right:
            self._misses = 0
            self._length = min(2 * guessed, self._most) if right == guessed else max(2, right)
        elif guessed:
            self._misses += 1
            self._length = 2
            self._pause = min(2**self._misses, LONGEST_PAUSE)


class PromptLookup:
    """Guesses what followed when the last tokens stood in the text before (Saxena 2023, "Prompt Lookup Decoding")."""

    def __init__(self, size: int = 3) -> None:
        """``size`` tokens have to agree."""
        self._size, self._eagerness = size, Eagerness()
        self._ends: dict[tuple[int, ...], int] = {}
        self._known = 0

    def guess(self, token_ids: Sequence[int], most: int) -> list[int]:
        """What followed the last time; where that is the end of the text, its guesses are what follows."""
        for end in range(max(self._known, self._size), len(token_ids)):
            self._ends[tuple(token_ids[end - self._size : end])] = end
        self._known = len(token_ids)
        found = self._ends.get(tuple(token_ids[-self._size :]))
        if found is None:
            return []
        going_on = list(token_ids[found:])
        for place in range(length := min(self._eagerness.length(), most)):
            going_on.append(going_on[place])
        return going_on[:length]

    def learn(self, guessed: int, right: int) -> None:
        """Adapt the number of guesses."""
        self._eagerness.learn(guessed, right)


class DraftModel:
    """Guesses what a smaller model of the same vocabulary would write, with the same random numbers."""

    def __init__(self, model: CausalLanguageModel, sampler: Sampler, device: torch.device) -> None:
        """``sampler`` has the settings and the prompt of the request."""
        self._model, self._sampler, self._device = model, sampler, device
        self._cache: Cache | None = None  # not before the first guess: of many texts at once few are guessed
        self._read: list[int] = []
        self._eagerness = Eagerness(8)

    def guess(self, token_ids: Sequence[int], most: int) -> list[int]:
        """What it would write; nothing where the text is longer than its context."""
        length = min(self._eagerness.length(), most, self._model.context_length - len(token_ids))
        if length <= 0:
            return []
        n_prompt = len(self._sampler.prompt)
        known = common_length(self._read, token_ids[:-1])
        capacity = min(self._model.context_length, n_prompt + self._sampler.config.max_tokens)
        cache = self._cache = self._cache or self._model.new_cache(1, capacity)
        cache.lengths[0] = known
        if len(token_ids) - known > 1:  # without the logits of each, as many as there are entries
            self._model.read(torch.tensor([token_ids[known:-1]], device=self._device), cache)
        unread, guessed = [token_ids[-1]], list[int]()
        while len(guessed) < length:
            logits = self._model(torch.tensor([unread], device=self._device), cache)[0, -1]
            if not have_numbers(logits):
                raise NumericsError(f"draft: {NO_NUMBERS}")
            written = [*token_ids[n_prompt:], *guessed]
            try:
                unread = [self._sampler.draw(logits.float().cpu(), written)]
            except NothingLeftError:  # of this model; the one that is guessed for may go on
                break
            guessed += unread
            if self._sampler.ends(unread[0]):
                break
        self._read = [*token_ids, *guessed[:-1]]
        return guessed

    def learn(self, guessed: int, right: int) -> None:
        """Adapt the number of guesses."""
        self._eagerness.learn(guessed, right)


def common_length(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the common beginning."""
    return next(
        (i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right))
    )
