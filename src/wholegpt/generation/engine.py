"""Many texts at once: requests come and go while the others are written (Yu et al. 2022, "Orca").

Shapes: n requests that are written, T tokens of each that are read in a step, V vocabulary.
"""

from collections import deque
from collections.abc import Callable, Sequence

import torch

from wholegpt.config import GenerationConfig
from wholegpt.errors import ConfigError
from wholegpt.generation.request import GenerationRequest
from wholegpt.generation.speculation import Drafter, common_length
from wholegpt.protocols import Cache, CausalLanguageModel
from wholegpt.runtime import at_least_float32
from wholegpt.tokenizers import Tokenizer

ROWS_AT_ONCE = 16
"""Rows of a step within which guesses are read too: so many take little longer than one."""
READ_AT_ONCE = 512
"""Tokens of new prompts that are read in a step, so that a long one does not hold up those that are being written."""


class Engine:
    """Writes texts token by token, one of each request a step, over one pool of cache slots.

    What a request gets does not depend on its companions, but for the last bits of the logits: matrix products of
    another number of rows add in another order. In float64 that changes no token; in bfloat16 it can, where two are
    nearly equally likely.
    """

    def __init__(
        self,
        model: CausalLanguageModel,
        tokenizer: Tokenizer,
        device: torch.device,
        slots: int = 1,
        capacity: int = 0,
    ) -> None:
        """``slots`` requests are written at once, the others wait; each has ``capacity`` positions (0: τ)."""
        self.model, self.tokenizer, self.device, self.slots = model, tokenizer, device, slots
        self.capacity = min(capacity or model.context_length, model.context_length)
        self._pool = model.new_cache(slots, self.capacity)
        self._batches = [self._pool.rows(0, n) for n in range(slots + 1)]
        self._waiting: deque[GenerationRequest] = deque()
        self._running: list[GenerationRequest] = []
        """Request i has slot i; only the last may have more of its prompt to read."""

    @property
    def busy(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self._waiting or self._running)

    @property
    def unfinished_tokens(self) -> int:
        """What the requests that are being written have so far."""
        return sum(len(request.token_ids) for request in self._running)

    def submit(
        self,
        prompt_ids: Sequence[int],
        config: GenerationConfig,
        emit: Callable[[str], None] = lambda text: None,
        drafter: Drafter | None = None,
    ) -> GenerationRequest:
        """Queue a request, whose prompt has at least one token; of one longer than τ the last τ are read.

        A ``drafter`` makes it faster where it guesses well. Raises ``ConfigError`` for a text that does not fit a slot,
        and for settings that are out of range or that the vocabulary cannot meet.
        """
        if drafter:
            check_rewinds(self._pool)
        needed = min(len(prompt_ids) + config.max_tokens, self.model.context_length)
        if needed > self.capacity:
            raise ConfigError(f"prompt and max_tokens take {needed} positions; a slot has {self.capacity}")
        request = GenerationRequest(prompt_ids, config, self.tokenizer, emit, drafter)
        request.unread = request.prompt_ids[-self.model.context_length :]
        if not request.finish_reason:
            self._waiting.append(request)
        return request

    @torch.inference_mode()
    def step(self) -> list[GenerationRequest]:
        """Read some of the prompts that wait, write one token of each request whose prompt is read.

        Returns the requests that ended.
        """
        self._read_prompts()
        ready = len(self._running) - self._reading
        if not ready:
            return []
        guesses = self._guess(self._running[:ready])
        width = 1 + max(map(len, guesses))
        batch = [
            [*request.unread, *guessed, *[0] * (width - 1 - len(guessed))]
            for request, guessed in zip(self._running, guesses, strict=False)
        ]
        logits = self.model(torch.tensor(batch, device=self.device), self._batches[ready])
        logits = at_least_float32(logits.cpu())
        for row, guessed in enumerate(guesses):
            read = self._running[row].draw(logits[row], guessed)
            self._pool.lengths[row] -= width - read
        ended = [row for row in range(ready) if self._running[row].finish_reason]
        return [self._remove(row) for row in reversed(ended)]

    def run(self) -> None:
        """Write until every request has ended."""
        while self.busy:
            self.step()

    @property
    def _reading(self) -> bool:
        """Whether the last request has more to read than the token that a step reads of each."""
        return bool(self._running) and len(self._running[-1].unread) > 1

    def _guess(self, requests: Sequence[GenerationRequest]) -> list[list[int]]:
        """What each request's drafter expects next, as far as there is room for it."""
        longest = int(self._pool.lengths[: len(requests)].max())
        most = min(self.capacity - longest, ROWS_AT_ONCE // len(requests)) - 1
        return [request.guess(most) for request in requests]

    def _read_prompts(self) -> None:
        """All but the last token of each, which goes with the others' in one batch."""
        for row, request in enumerate(self._running):
            if request.token_ids and self._full(row):
                self._restart(row, request)
        left = READ_AT_ONCE
        while left > 0:
            if not self._reading:
                if not self._waiting or len(self._running) == self.slots:
                    return
                self._begin(self._waiting.popleft())
            left -= self._read(len(self._running) - 1, left)

    def _begin(self, request: GenerationRequest) -> None:
        """Give a request the next slot; what a companion's prompt begins with too is copied, not read again."""
        row = len(self._running)
        self._running.append(request)
        request.begin()
        self._pool.rows(row, row + 1).clear()
        lengths = [self._common_beginning(request, other) for other in range(row)]
        if any(lengths):
            longest = max(lengths)
            self._pool.copy_row(lengths.index(longest), row, longest)
            request.unread = request.unread[longest:]

    def _common_beginning(self, request: GenerationRequest, other: int) -> int:
        """How much of what a new request reads stands at the beginning of another one's slot."""
        companion = self._running[other]
        window = companion.prompt_ids[-self.model.context_length :]
        if len(window) + len(companion.token_ids) > self.capacity:
            return 0  # its window has moved on
        length = common_length(window[:-1], request.unread[:-1])
        return length if self._pool.can_forget(other, length) else 0

    def _read(self, row: int, most: int) -> int:
        request = self._running[row]
        piece = request.unread[:-1][:most]
        if piece:
            self.model.read(torch.tensor([piece], device=self.device), self._pool.rows(row, row + 1))
            request.unread = request.unread[len(piece) :]
        return len(piece)

    def _full(self, row: int) -> bool:
        return self.model.ends_at_context and int(self._pool.lengths[row]) == self.model.context_length

    def _restart(self, row: int, request: GenerationRequest) -> None:
        """A model that cannot see beyond τ positions starts anew from the last τ/2 tokens."""
        self._pool.rows(row, row + 1).clear()
        request.unread = restarted_window(
            [*request.prompt_ids, *request.token_ids], self.model.context_length
        )
        self._read(row, len(request.unread))

    def _remove(self, row: int) -> GenerationRequest:
        """Take a request out; the last one that is written gets its slot, the one whose prompt is read that one's."""
        request = self._running[row]
        gap = row
        for last in sorted({len(self._running) - 1 - self._reading, len(self._running) - 1}):
            if gap != last:
                self._pool.copy_row(last, gap)
                self._running[gap] = self._running[last]
            gap = last
        self._running.pop()
        return request


def check_rewinds(cache: Cache) -> None:
    """Raise ``ConfigError`` for a model that nothing can be guessed for, and that cannot guess."""
    if not cache.rewinds:
        raise ConfigError(
            "wrong guesses cannot be taken back from a model that keeps a sum of what it read; leave draft out"
        )


def restarted_window(token_ids: Sequence[int], context_length: int) -> list[int]:
    """Where τ positions are full, what is read instead: the last τ/2 of them and the token after them."""
    kept = context_length // 2 if context_length > 1 else 0
    return list(token_ids[-kept - 1 :])
