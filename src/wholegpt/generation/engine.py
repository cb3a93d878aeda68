"""Many texts at once: requests come and go while the others are written (Yu et al. 2022, "Orca").

Shapes: n requests that are written, T tokens of each that are read in a step, V vocabulary.
"""

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from wholegpt.errors import ConfigError, NumericsError
from wholegpt.generation.processors import INVALID_LOGITS, are_valid_logits
from wholegpt.generation.request import GenerationRequest
from wholegpt.generation.speculation import Drafter, common_length
from wholegpt.model.interface import Cache, CausalLanguageModel
from wholegpt.runtime import at_least_float32
from wholegpt.settings.schema import GenerationConfig
from wholegpt.settings.validation import MOST_PROMPT_TOKENS, MOST_WAITING
from wholegpt.tokenizers import Tokenizer

R = TypeVar("R")

ROWS_AT_ONCE = 16
"""Rows of a step within which guesses are read too: so many take little longer than one."""
PREFILL_CHUNK = 512
"""Tokens of new prompts that are read in a step, so that a long one does not hold up those that are being written."""


class Engine:
    """Writes texts token by token, one of each request a step, over one pool of cache slots.

    What a request gets does not depend on its companions, but for the last bits of the logits: matrix products of
    another number of rows add in another order. In float64 that changes no token; in bfloat16 it can, where two are
    nearly equally likely.

    Nor does it depend on their failures. An exception in a request's own code (``emit``, drafter, settings), or logits
    that are not numbers, end that request alone: its ``finish_reason`` is ``error`` and its ``error`` the exception.
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
    def free_slots(self) -> int:
        """How many more requests can be added without one having to wait."""
        return self.slots - len(self._running) - len(self._waiting)

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

        A ``drafter`` makes it faster where it guesses well. Raises ``ConfigError`` for ids that are no tokens of the
        model, for a text that does not fit a slot, for settings that are out of range or that the vocabulary cannot
        meet, and where too many requests wait already.
        """
        request = self.prepare(prompt_ids, config, emit, drafter)
        self.add(request)
        return request

    def prepare(
        self,
        prompt_ids: Sequence[int],
        config: GenerationConfig,
        emit: Callable[[str], None] = lambda text: None,
        drafter: Drafter | None = None,
    ) -> GenerationRequest:
        """Check a request and compile its grammar, without adding it.

        The only method that may be called while another thread uses the engine. Raises the errors of ``submit``.
        """
        if drafter:
            check_can_rewind(self._pool)
        check_prompt(prompt_ids, self.model.vocab_size)
        needed = min(len(prompt_ids) + config.max_tokens, self.model.context_length)
        if needed > self.capacity:
            raise ConfigError(f"prompt and max_tokens take {needed} positions; a slot has {self.capacity}")
        request = GenerationRequest(prompt_ids, config, self.tokenizer, emit, drafter)
        request.unread = request.prompt_ids[-self.model.context_length :]
        return request

    def add(self, request: GenerationRequest) -> None:
        """Queue a prepared request, unless it has ended already. Raises ``ConfigError`` where too many wait."""
        if len(self._waiting) >= MOST_WAITING:
            raise ConfigError(f"{MOST_WAITING:,} requests are waiting, which is the limit; submit it later")
        if not request.finish_reason:
            self._waiting.append(request)

    @torch.inference_mode()
    def cancel(self, request: GenerationRequest) -> None:
        """End a request between two steps, with the text so far. Does nothing if it has ended."""
        if request in self._waiting:
            self._waiting.remove(request)
        elif request in self._running:
            self._remove(self._running.index(request))
        else:
            return
        self._attempt(request, request.cancel, None)

    @torch.inference_mode()
    def step(self) -> list[GenerationRequest]:
        """Read some of the prompts that wait, write one token of each request whose prompt is read.

        Returns the requests that ended. An exception of the model while it reads for all of them ends all that were
        running, and is raised.
        """
        try:
            return [*self._read_prompts(), *self._decode()]
        except BaseException as error:  # Ctrl-C too: after half a step no text can go on
            if isinstance(error, Exception):
                for request in self._running:
                    request.fail(error)
            self._running.clear()
            raise

    def _decode(self) -> list[GenerationRequest]:
        """Draw a token, and those after accepted draft tokens, for each prefilled request; return those that ended."""
        ready = len(self._running) - self._reading
        if not ready:
            return []
        guesses = self._guess(self._running[:ready])
        width = 1 + max(map(len, guesses))
        batch: list[list[int]] = []
        for request, guessed in zip(self._running, guesses, strict=False):
            real = [*request.unread, *guessed]
            # Padded with its own last token: that of another could be one whose weights are damaged.
            batch.append([*real, *real[-1:] * (width - len(real))])
        logits = self.model(torch.tensor(batch, device=self.device), self._batches[ready])
        logits = at_least_float32(logits.cpu())
        for row, numbers in enumerate(are_valid_logits(logits).all(dim=-1).tolist()):
            self._draw(row, logits[row], guesses[row], numbers)
        ended = [row for row in range(ready) if self._running[row].finish_reason]
        return [self._remove(row) for row in reversed(ended)]

    def _draw(self, row: int, logits: Float[Tensor, "T V"], guessed: Sequence[int], numbers: bool) -> None:
        """Draw a request's tokens, unless it has failed; of one that fails nothing is kept in its slot."""
        request = self._running[row]
        if not request.error:
            if numbers:
                read = self._attempt(request, lambda: request.draw(logits, guessed), 0)
                self._pool.lengths[row] -= len(logits) - read
            else:
                request.fail(NumericsError(INVALID_LOGITS))
        if request.error:
            # NaN that is left in a slot would reach the next request in it: its weight is 0, and 0 · NaN is NaN.
            self._pool.rows(row, row + 1).clear()

    @staticmethod
    def _attempt(request: GenerationRequest, action: Callable[[], R], otherwise: R) -> R:
        """The result of an action for one request, or ``otherwise`` where that fails, which ends this request alone."""
        try:
            return action()
        except Exception as error:  # a caller's code may raise anything
            request.fail(error)
            return otherwise

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
        return [self._attempt(request, partial(self._guess_one, request, most), []) for request in requests]

    def _guess_one(self, request: GenerationRequest, most: int) -> list[int]:
        guessed = request.propose(most)
        if len(guessed) > max(most, 0) or not all(0 <= one < self.model.vocab_size for one in guessed):
            raise ValueError(
                f"the drafter guessed {guessed[:20]}; expected at most {most} ids of the vocabulary"
            )
        return guessed

    def _read_prompts(self) -> list[GenerationRequest]:
        """All but the last token of each, which goes with the others' in one batch; returns those that failed."""
        failed: list[GenerationRequest] = []
        for row in reversed(range(len(self._running))):
            request = self._running[row]
            if request.token_ids and self._full(row):
                self._attempt(request, partial(self._restart, row, request), None)
                if request.error:
                    failed.append(self._remove(row))
        left = PREFILL_CHUNK
        while left > 0:
            if not self._reading:
                if not self._waiting or len(self._running) == self.slots:
                    break
                self._begin(self._waiting.popleft())
            row, request = len(self._running) - 1, self._running[-1]
            left -= self._attempt(request, partial(self._read, row, left), 0)
            if request.error:
                failed.append(self._remove(row))
        return failed

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
        return length if self._pool.can_rewind_to(other, length) else 0

    def _read(self, row: int, most: int) -> int:
        request = self._running[row]
        piece = request.unread[:-1][:most]
        if piece:
            self.model.prefill(torch.tensor([piece], device=self.device), self._pool.rows(row, row + 1))
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
            if last > gap:
                self._pool.copy_row(last, gap)
                self._running[gap] = self._running[last]
                gap = last
        self._running.pop()
        return request


def check_prompt(prompt_ids: Sequence[int], vocab_size: int) -> None:
    """Raise ``ConfigError`` for a prompt that is empty, too long, or holds ids that a vocabulary does not have."""
    if not 0 < len(prompt_ids) <= MOST_PROMPT_TOKENS:
        raise ConfigError(f"the prompt has {len(prompt_ids):,} tokens; expected 1 to {MOST_PROMPT_TOKENS:,}")
    outside = next((one for one in (min(prompt_ids), max(prompt_ids)) if not 0 <= one < vocab_size), None)
    if outside is not None:
        raise ConfigError(f"the prompt holds token id {outside}; ids go from 0 to {vocab_size - 1}")


def check_can_rewind(cache: Cache) -> None:
    """Raise ``ConfigError`` for a model that nothing can be guessed for, and that cannot guess."""
    if not cache.can_rewind:
        raise ConfigError(
            "wrong guesses cannot be taken back from a model that keeps a sum of what it read; leave draft out"
        )


def restarted_window(token_ids: Sequence[int], context_length: int) -> list[int]:
    """Where τ positions are full, what is read instead: the last τ/2 of them and the token after them."""
    kept = context_length // 2 if context_length > 1 else 0
    return list(token_ids[-kept - 1 :])
