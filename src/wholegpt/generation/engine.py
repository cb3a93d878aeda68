"""Generation of many sequences with continuous batching (Yu et al. 2022, "Orca").

Shapes: T tokens of a request in a step, V vocabulary.
"""

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from wholegpt.errors import ConfigError, NumericsError
from wholegpt.generation.processors import INVALID_LOGITS, are_valid_logits
from wholegpt.generation.request import GenerationRequest
from wholegpt.generation.sampling import Draw, draw_rows
from wholegpt.generation.speculation import Drafter
from wholegpt.model.interface import Cache, CausalLanguageModel
from wholegpt.runtime import at_least_float32
from wholegpt.settings.schema import GenerationConfig
from wholegpt.settings.validation import MOST_PROMPT_TOKENS, MOST_WAITING
from wholegpt.tokenizers import Tokenizer

R = TypeVar("R")

ROWS_AT_ONCE = 16
"""Largest number of rows in a step, draft tokens included. So many rows take little longer than a single one."""
MOST_PADDING = 64
"""Largest number of padding tokens when several prompts are prefilled together; about the cost of one more call."""
PREFILL_CHUNK = 512
"""Prompt tokens that are prefilled in a step, so that a long prompt does not delay the running requests."""


class Engine:
    """Generates one token of each running request per step, over one pool of KV-cache slots.

    The other requests in the batch change only the last bits of a request's logits, because the summation order of
    matrix products depends on the number of rows. In float64 this changes no token. In bfloat16 it can change one if
    two tokens are nearly equally likely.

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
        self._prompts = np.full((slots, self.capacity), -1, dtype=np.int32)
        """The prompt in each slot, without its last token; −1 after it."""
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
        request.pending = request.prompt_ids[-self.model.context_length :]
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

        Returns the requests that ended. An exception of the model while it decodes the whole batch ends all running
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
            real = [*request.pending, *drafted]
            # Padded with its own last token: that of another could be one whose weights are damaged.
            batch.append([*real, *real[-1:] * (width - len(real))])
        logits = self.model(torch.tensor(batch, device=self.device), self._batches[ready])
        logits = at_least_float32(logits.cpu())
        valid = are_valid_logits(logits).all(dim=-1).tolist()
        drawn = self._draw_together(logits[:, 0], [row for row in range(ready) if valid[row]])
        for row in range(ready):
            self._draw(row, logits[row], drafts[row], valid[row], drawn.get(row))
        ended = [row for row in range(ready) if self._running[row].finish_reason]
        return [self._remove(row) for row in reversed(ended)]

    def _draw_together(self, logits: Float[Tensor, "B V"], rows: list[int]) -> dict[int, Draw | None]:
        """Draw the first token of the requests in ``rows`` together; None for those that ``draw_rows`` leaves out."""
        requests = [self._running[row] for row in rows]
        samplers, texts = [one.sampler for one in requests], [one.token_ids for one in requests]
        chosen = logits if len(rows) == len(logits) else logits[rows]
        return dict(zip(rows, draw_rows(samplers, chosen, texts), strict=True))

    def _draw(
        self, row: int, logits: Float[Tensor, "T V"], drafted: Sequence[int], valid: bool, first: Draw | None
    ) -> None:
        """Draw a request's tokens, unless it has failed; clear the slot of a request that fails."""
        request = self._running[row]
        if not request.error:
            if valid:
                kept = self._attempt(request, lambda: request.draw(logits, drafted, first), 0)
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
        return bool(self._running) and len(self._running[-1].pending) > 1

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
            last = len(self._running) - 1
            rows = range(last, last + 1) if self._prefilling else self._admit(left)
            if not rows:
                break
            left -= self._prefill_together(rows, left)
            failed += [self._remove(row) for row in reversed(rows) if self._running[row].error]
        return failed

    def _admit(self, most: int) -> range:
        """Give slots to the next waiting request and to those that can be prefilled together with it, in at most
        ``most`` tokens including padding. Return these slots.

        If a request shares a prefix with the prompt of another one, the cache of the prefix is copied.
        """
        first, width, start, tokens = len(self._running), 0, 0, 0
        while self._waiting and len(self._running) < self.slots:
            row, request = len(self._running), self._waiting[0]
            lengths = self._common_prefixes(request)
            source, shared = self._longest_prefix(lengths[:first], request)
            own = len(request.pending) - 1 - shared
            width, start, tokens = max(width, own), max(start, shared), tokens + own
            if row > first:
                total = width * (row + 1 - first)
                fits = start + width <= self._pool.padded_capacity and total <= most
                # The prompt of a request that is not prefilled yet cannot be copied.
                waits = max(lengths[first:]) - shared > own / 2
                if not own or waits or not fits or total - tokens > MOST_PADDING:
                    break
            self._place(self._waiting.popleft(), source, shared)
            if not own:
                break
        return range(first, len(self._running))

    def _place(self, request: GenerationRequest, source: int, shared: int) -> None:
        """Give a request the next slot, and copy the first ``shared`` positions from the slot ``source``."""
        row = len(self._running)
        self._running.append(request)
        request.start()
        self._prompts[row] = -1
        self._prompts[row, : len(request.pending) - 1] = request.pending[:-1]
        self._pool.rows(row, row + 1).clear()
        if shared:
            self._pool.copy_row(source, row, shared)
            request.pending = request.pending[shared:]

    def _common_prefixes(self, request: GenerationRequest) -> list[int]:
        """Return the lengths of the prefixes that a new request shares with the prompt in each used slot."""
        prompt = np.array(request.pending[:-1], dtype=np.int32)
        equal = self._prompts[: len(self._running), : len(prompt)] == prompt
        return np.logical_and.accumulate(equal, axis=1).sum(axis=1).tolist()

    def _longest_prefix(self, lengths: Sequence[int], request: GenerationRequest) -> tuple[int, int]:
        """Return the slot with the longest of the common prefixes that can be copied, and its length; 0 if none can."""
        for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
            other, length = self._running[row], lengths[row]
            window = min(len(other.prompt_ids), self.model.context_length)
            moved_on = window + len(other.token_ids) > self.capacity
            if not moved_on and self._pool.can_rewind_to(row, length):
                return row, length
        return 0, 0

    def _prefill_together(self, rows: range, most: int) -> int:
        """Prefill requests that were admitted together; one alone may keep tokens for the next step.

        Returns how many tokens were computed. If the model fails, each request is tried alone.
        """
        if len(rows) > 1:
            lengths = self._pool.lengths.clone()
            try:
                return self._prefill(rows, most)
            except Exception:  # of one of the requests, which _attempt finds
                self._pool.lengths.copy_(lengths)
        each = [range(row, row + 1) for row in rows]
        return sum(
            self._attempt(self._running[one.start], partial(self._prefill, one, most), 0) for one in each
        )

    def _prefill(self, rows: range, most: int) -> int:
        """Prefill the prompts in adjacent slots, padded to the longest; return how many tokens were computed."""
        pieces = [self._running[row].pending[:-1][:most] for row in rows]
        width = max(map(len, pieces))
        if not width:
            return 0
        padded = [[*piece, *piece[-1:] * (width - len(piece))] for piece in pieces]
        self.model.prefill(torch.tensor(padded, device=self.device), self._pool.rows(rows.start, rows.stop))
        for row, piece in zip(rows, pieces, strict=True):
            self._pool.lengths[row] -= width - len(piece)
            self._running[row].pending = self._running[row].pending[len(piece) :]
        return width * len(rows)

    def _full(self, row: int) -> bool:
        return self.model.ends_at_context and int(self._pool.lengths[row]) == self.model.context_length

    def _restart(self, row: int, request: GenerationRequest) -> None:
        """Restart the window of a model with at most τ positions from the last τ/2 tokens."""
        self._pool.rows(row, row + 1).clear()
        request.pending = restarted_window(
            [*request.prompt_ids, *request.token_ids], self.model.context_length
        )
        self._prefill(range(row, row + 1), len(request.pending))

    def _remove(self, row: int) -> GenerationRequest:
        """Remove a request. The last decoding request moves into its slot, and the prefilling one into the slot that
        this leaves free.
        """
        request = self._running[row]
        gap = row
        for last in sorted({len(self._running) - 1 - self._prefilling, len(self._running) - 1}):
            if last > gap:
                self._pool.copy_row(last, gap)
                self._prompts[gap] = self._prompts[last]
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
