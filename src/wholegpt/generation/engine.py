"""Generation of many sequences with continuous batching (Yu et al. 2022, "Orca").

Shapes: T tokens of a request in a step, V vocabulary.
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
"""Most rows of a step, draft tokens included. So many take little longer than one."""
PREFILL_CHUNK = 512
"""Tokens of new prompts that are prefilled in a step, so that a long prompt does not delay the running requests."""


class Engine:
    """Generates one token of each running request per step, over one pool of KV-cache slots.

    The other requests in the batch change only the last bits of a request's logits, because matrix products with
    another number of rows add in another order. In float64 this changes no token. In bfloat16 it can change one if two
    tokens are nearly equally likely.

    An exception in a request's own code (``emit``, drafter, settings), or logits that are NaN or infinite, end that
    request alone: its ``finish_reason`` is ``error`` and its ``error`` the exception.
    """

    def __init__(
        self,
        model: CausalLanguageModel,
        tokenizer: Tokenizer,
        device: torch.device,
        slots: int = 1,
        capacity: int = 0,
    ) -> None:
        """At most ``slots`` requests run at once, and the others wait. Each has ``capacity`` positions (0: τ)."""
        self.model, self.tokenizer, self.device, self.slots = model, tokenizer, device, slots
        self.capacity = min(capacity or model.context_length, model.context_length)
        self._pool = model.new_cache(slots, self.capacity)
        self._batches = [self._pool.rows(0, n) for n in range(slots + 1)]
        self._waiting: deque[GenerationRequest] = deque()
        self._running: list[GenerationRequest] = []
        """Request i has slot i. Only the last one may have prompt tokens left to prefill."""

    @property
    def busy(self) -> bool:
        """Return whether any request is unfinished."""
        return bool(self._waiting or self._running)

    @property
    def free_slots(self) -> int:
        """Return how many more requests can be added without one having to wait."""
        return self.slots - len(self._running) - len(self._waiting)

    @property
    def unfinished_tokens(self) -> int:
        """Return the number of tokens that the running requests have generated so far."""
        return sum(len(request.token_ids) for request in self._running)

    def submit(
        self,
        prompt_ids: Sequence[int],
        config: GenerationConfig,
        emit: Callable[[str], None] = lambda text: None,
        drafter: Drafter | None = None,
    ) -> GenerationRequest:
        """Queue a request with at least one prompt token; only the last τ tokens of a longer prompt are used.

        A ``drafter`` proposes draft tokens. Raises ``ConfigError`` for ids outside the vocabulary, a text that does not
        fit into a slot, settings that are out of range or that the vocabulary cannot satisfy, and if too many requests
        are waiting.
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
        """Queue a prepared request, unless it has ended already. Raises ``ConfigError`` if too many wait."""
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
        """Prefill some waiting prompts, and generate one token of each prefilled request.

        Returns the requests that ended. An exception of the model in a step of the whole batch ends all running
        requests, and is raised.
        """
        try:
            return [*self._prefill_prompts(), *self._decode()]
        except BaseException as error:  # Ctrl-C, too: no text can continue after half a step
            if isinstance(error, Exception):
                for request in self._running:
                    request.fail(error)
            self._running.clear()
            raise

    def _decode(self) -> list[GenerationRequest]:
        """Draw a token, and those after accepted draft tokens, for each prefilled request; return those that ended."""
        ready = len(self._running) - self._prefilling
        if not ready:
            return []
        drafts = self._propose(self._running[:ready])
        width = 1 + max(map(len, drafts))
        batch: list[list[int]] = []
        for request, drafted in zip(self._running, drafts, strict=False):
            real = [*request.unread, *drafted]
            # Padded with its own last token: that of another could be one whose weights are damaged.
            batch.append([*real, *real[-1:] * (width - len(real))])
        logits = self.model(torch.tensor(batch, device=self.device), self._batches[ready])
        logits = at_least_float32(logits.cpu())
        for row, numbers in enumerate(are_valid_logits(logits).all(dim=-1).tolist()):
            self._draw(row, logits[row], drafts[row], numbers)
        ended = [row for row in range(ready) if self._running[row].finish_reason]
        return [self._remove(row) for row in reversed(ended)]

    def _draw(self, row: int, logits: Float[Tensor, "T V"], drafted: Sequence[int], numbers: bool) -> None:
        """Draw a request's tokens, unless it has failed; clear the slot of a request that fails."""
        request = self._running[row]
        if not request.error:
            if numbers:
                kept = self._attempt(request, lambda: request.draw(logits, drafted), 0)
                self._pool.lengths[row] -= len(logits) - kept
            else:
                request.fail(NumericsError(INVALID_LOGITS))
        if request.error:
            # NaN left in a slot would reach the next request: its attention weight is 0, and 0 · NaN is NaN.
            self._pool.rows(row, row + 1).clear()

    @staticmethod
    def _attempt(request: GenerationRequest, action: Callable[[], R], otherwise: R) -> R:
        """Return the result of an action for one request. If it fails, end this request and return ``otherwise``."""
        try:
            return action()
        except Exception as error:  # a caller's code may raise anything
            request.fail(error)
            return otherwise

    def run(self) -> None:
        """Generate until every request has ended."""
        while self.busy:
            self.step()

    @property
    def _prefilling(self) -> bool:
        """Whether the last request has prompt tokens to prefill besides the one that each step decodes from."""
        return bool(self._running) and len(self._running[-1].unread) > 1

    def _propose(self, requests: Sequence[GenerationRequest]) -> list[list[int]]:
        """Return the draft tokens of each request, at most as many as there is room for."""
        longest = int(self._pool.lengths[: len(requests)].max())
        most = min(self.capacity - longest, ROWS_AT_ONCE // len(requests)) - 1
        return [self._attempt(request, partial(self._propose_one, request, most), []) for request in requests]

    def _propose_one(self, request: GenerationRequest, most: int) -> list[int]:
        drafted = request.propose(most)
        if len(drafted) > max(most, 0) or not all(0 <= one < self.model.vocab_size for one in drafted):
            raise ValueError(
                f"the drafter proposed {drafted[:20]}; expected at most {most} ids of the vocabulary"
            )
        return drafted

    def _prefill_prompts(self) -> list[GenerationRequest]:
        """Prefill all prompt tokens but the last, which is decoded in the batch; return the requests that failed."""
        failed: list[GenerationRequest] = []
        for row in reversed(range(len(self._running))):
            request = self._running[row]
            if request.token_ids and self._full(row):
                self._attempt(request, partial(self._restart, row, request), None)
                if request.error:
                    failed.append(self._remove(row))
        left = PREFILL_CHUNK
        while left > 0:
            if not self._prefilling:
                if not self._waiting or len(self._running) == self.slots:
                    break
                self._admit(self._waiting.popleft())
            row, request = len(self._running) - 1, self._running[-1]
            left -= self._attempt(request, partial(self._prefill, row, left), 0)
            if request.error:
                failed.append(self._remove(row))
        return failed

    def _admit(self, request: GenerationRequest) -> None:
        """Give a request the next slot, and copy the cache of a prefix that it shares with another request's prompt."""
        row = len(self._running)
        self._running.append(request)
        request.start()
        self._pool.rows(row, row + 1).clear()
        lengths = [self._common_prefix(request, other) for other in range(row)]
        if any(lengths):
            longest = max(lengths)
            self._pool.copy_row(lengths.index(longest), row, longest)
            request.unread = request.unread[longest:]

    def _common_prefix(self, request: GenerationRequest, row: int) -> int:
        """Return the length of the prefix that a new request shares with the prompt in slot ``row``."""
        other = self._running[row]
        window = other.prompt_ids[-self.model.context_length :]
        if len(window) + len(other.token_ids) > self.capacity:
            return 0  # its window has moved on
        length = common_length(window[:-1], request.unread[:-1])
        return length if self._pool.can_rewind_to(row, length) else 0

    def _prefill(self, row: int, most: int) -> int:
        request = self._running[row]
        piece = request.unread[:-1][:most]
        if piece:
            self.model.prefill(torch.tensor([piece], device=self.device), self._pool.rows(row, row + 1))
            request.unread = request.unread[len(piece) :]
        return len(piece)

    def _full(self, row: int) -> bool:
        return self.model.ends_at_context and int(self._pool.lengths[row]) == self.model.context_length

    def _restart(self, row: int, request: GenerationRequest) -> None:
        """Restart the window of a model with at most τ positions from the last τ/2 tokens."""
        self._pool.rows(row, row + 1).clear()
        request.unread = restarted_window(
            [*request.prompt_ids, *request.token_ids], self.model.context_length
        )
        self._prefill(row, len(request.unread))

    def _remove(self, row: int) -> GenerationRequest:
        """Remove a request. The last decoding request moves to its slot, and the prefilling one to the slot of that."""
        request = self._running[row]
        gap = row
        for last in sorted({len(self._running) - 1 - self._prefilling, len(self._running) - 1}):
            if last > gap:
                self._pool.copy_row(last, gap)
                self._running[gap] = self._running[last]
                gap = last
        self._running.pop()
        return request


def check_prompt(prompt_ids: Sequence[int], vocab_size: int) -> None:
    """Raise ``ConfigError`` for a prompt that is empty, is too long, or has ids outside the vocabulary."""
    if not 0 < len(prompt_ids) <= MOST_PROMPT_TOKENS:
        raise ConfigError(f"the prompt has {len(prompt_ids):,} tokens; expected 1 to {MOST_PROMPT_TOKENS:,}")
    outside = next((one for one in (min(prompt_ids), max(prompt_ids)) if not 0 <= one < vocab_size), None)
    if outside is not None:
        raise ConfigError(f"the prompt has token id {outside}; expected ids from 0 to {vocab_size - 1}")


def check_can_rewind(cache: Cache) -> None:
    """Raise ``ConfigError`` for a model whose cache cannot be rewound, which speculative decoding needs."""
    if not cache.can_rewind:
        raise ConfigError(
            "speculative decoding needs a cache that can be rewound; this model keeps a running sum; leave draft out"
        )


def restarted_window(token_ids: Sequence[int], context_length: int) -> list[int]:
    """Return the tokens to prefill when τ positions are full: the last τ/2 of them and the token after them."""
    kept = context_length // 2 if context_length > 1 else 0
    return list(token_ids[-kept - 1 :])
