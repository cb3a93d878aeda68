"""Likelihoods of continuations given contexts, for multiple choice, cloze and last-word tasks.

Sequences with a common prefix are computed together: the prefix once, and its KV cache is shared. The others
are computed in batches of similar length.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wholegpt.console import Console, Progress
from wholegpt.errors import DataError, NumericsError
from wholegpt.evaluation.perplexity import TOKENS_AT_ONCE
from wholegpt.model.interface import Cache, CausalLanguageModel
from wholegpt.runtime import compute_in
from wholegpt.settings.choices import Dtype
from wholegpt.tokenizers import Tokenizer

LEAST_SHARED = 16
"""Minimum tokens of a common prefix to be shared."""
LEAST_SAVED = 256
"""Minimum tokens that sharing must save, because a group needs forward passes of its own instead of a share of a large
batch.
"""
LOGITS_AT_ONCE = 2**24
"""Maximum logits of a batch: 64 MB in float32."""
CACHED_AT_ONCE = 2**17
"""Maximum positions in the caches of one batch, over all its sequences."""


@dataclass(frozen=True)
class Request:
    """A continuation to score, and its context."""

    context_ids: tuple[int, ...]
    """Token ids of the context, at least one."""
    continuation_ids: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Tokenizer, context: str, continuation: str) -> "Request":
        """Encode both texts as one; spaces at the end of the context go to the continuation.

        The context gets the tokens that contain nothing of the continuation. A token across the boundary
        belongs to the continuation, which has at least one token. If no token is left for the context, it is
        end-of-text, or, if the vocabulary has none, the first token of the continuation. Raises ``DataError``
        if nothing is left to score.
        """
        stripped = context.rstrip()
        whole = tokenizer.encode(context + continuation)
        n_context = tokenizer.tokens_within(whole, stripped)
        if not n_context and tokenizer.has_end_of_text:
            whole, n_context = [tokenizer.end_of_text_id, *whole], 1
        if len(whole) < 2:
            raise DataError(f"after {context!r} nothing of {continuation!r} is left to score")
        n_context = min(max(1, n_context), len(whole) - 1)
        return cls(tuple(whole[:n_context]), tuple(whole[n_context:]))


@dataclass(frozen=True)
class Likelihood:
    """The likelihood of a continuation."""

    nats: float
    """−ln p(continuation | context), summed over its tokens."""
    tokens: int
    """Number of scored tokens."""
    greedy: bool
    """Whether each token is the most likely one at its position."""
    truncated: bool
    """Whether context and continuation exceed the model's context, so that the first tokens were dropped."""
    share: float = 1.0
    """Share of the continuation's tokens that were scored; below 1 if it alone exceeds the model's context."""


@dataclass(frozen=True)
class _Sequence:
    number: int
    token_ids: tuple[int, ...]
    scored: int
    """Number of tokens to score, at the end."""
    continuation: int
    """Tokens of the continuation, including dropped ones."""
    truncated: bool

    @property
    def inputs(self) -> tuple[int, ...]:
        return self.token_ids[:-1]

    @property
    def first_scored(self) -> int:
        """Return the index of the first input whose successor is scored."""
        return len(self.token_ids) - 1 - self.scored


@torch.inference_mode()
def score_continuations(
    model: CausalLanguageModel,
    requests: Sequence[Request],
    device: torch.device,
    dtype: Dtype,
    console: Console,
) -> list[Likelihood]:
    """Return the likelihood of each continuation, in the order of the requests.

    A request longer than the model's context τ keeps its last τ + 1 tokens, as inputs and targets. If the continuation
    alone is longer, only its last τ tokens are scored.
    """
    sequences = [_fitted(i, request, model.context_length) for i, request in enumerate(requests)]
    scored: list[Likelihood | None] = [None] * len(sequences)
    with console.progress("scoring", len(sequences)) as progress, compute_in(dtype, device):
        alone: list[_Sequence] = []
        for group, shared in _groups(sequences):
            if (len(group) - 1) * shared < LEAST_SAVED:
                alone.extend(group)
            else:
                _score_group(model, group, shared, device, scored, progress)
        alone.sort(key=lambda one: len(one.token_ids))
        for batch in _batches(alone, model, shared=0):
            _score_batch(model, batch, 0, None, device, scored, progress)
    return [one for one in scored if one is not None]


def _fitted(number: int, request: Request, context_length: int) -> _Sequence:
    whole = request.context_ids + request.continuation_ids
    token_ids = whole[-(context_length + 1) :]
    scored = min(len(request.continuation_ids), len(token_ids) - 1)
    n_continuation = len(request.continuation_ids)
    return _Sequence(number, token_ids, scored, n_continuation, len(token_ids) < len(whole))


def _groups(sequences: list[_Sequence]) -> Iterator[tuple[list[_Sequence], int]]:
    """Yield sequences with a common prefix, and its length, which ends before the first scored token.

    In sorted order, each sequence joins the previous group if that saves more tokens than the shorter prefix
    costs.
    """
    group: list[_Sequence] = []
    shared = 0
    for one in sorted(sequences, key=lambda one: one.token_ids):
        common = min(_common(group[0].inputs, one.inputs), shared, one.first_scored) if group else 0
        if group and len(group) * common >= (len(group) - 1) * shared and common >= LEAST_SHARED:
            group.append(one)
            shared = common
            continue
        if group:
            yield group, shared if len(group) > 1 else 0
        group, shared = [one], one.first_scored
    if group:
        yield group, shared if len(group) > 1 else 0


def _common(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    """Return the length of the common prefix."""
    for i, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return i
    return min(len(left), len(right))


def _score_group(
    model: CausalLanguageModel,
    group: list[_Sequence],
    shared: int,
    device: torch.device,
    scored: list[Likelihood | None],
    progress: Progress,
) -> None:
    prefix_cache = model.new_cache(1, shared)
    model.prefill(torch.tensor([group[0].inputs[:shared]], device=device), prefix_cache)
    group.sort(key=lambda one: len(one.token_ids))
    for batch in _batches(group, model, shared):
        longest = max(len(one.inputs) for one in batch)
        _score_batch(
            model, batch, shared, prefix_cache.repeated(len(batch), longest), device, scored, progress
        )


def _batches(
    sequences: list[_Sequence], model: CausalLanguageModel, shared: int
) -> Iterator[list[_Sequence]]:
    """Yield adjacent sequences, as many as fit the limits of a batch; the last one is the longest."""
    most_scored = LOGITS_AT_ONCE // model.vocab_size
    batch: list[_Sequence] = []
    for one in sequences:
        rows = len(batch) + 1
        too_many = (
            rows * (len(one.inputs) - shared) > TOKENS_AT_ONCE
            or rows * len(one.inputs) > CACHED_AT_ONCE
            or sum(other.scored for other in batch) + one.scored > most_scored
        )
        if batch and too_many:
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch


def _score_batch(
    model: CausalLanguageModel,
    batch: list[_Sequence],
    shared: int,
    cache: Cache | None,
    device: torch.device,
    scored: list[Likelihood | None],
    progress: Progress,
) -> None:
    """Score sequences whose first ``shared`` inputs are in the cache. Padding is at the end, where attention
    ignores it.
    """
    longest = max(len(one.inputs) for one in batch) - shared
    inputs = torch.zeros(len(batch), longest, dtype=torch.long)
    positions = torch.zeros(len(batch), longest, dtype=torch.bool)
    for row, one in enumerate(batch):
        rest = one.inputs[shared:]
        inputs[row, : len(rest)] = torch.tensor(rest)
        positions[row, one.first_scored - shared : len(rest)] = True
    logits = model.logits_at(inputs.to(device), positions.to(device), cache).cpu().double()
    for one, some in zip(batch, logits.split([one.scored for one in batch]), strict=True):
        scored[one.number] = _likelihood(one, some)
    progress.advance(len(batch))


def _likelihood(one: _Sequence, logits: Tensor) -> Likelihood:
    targets = torch.tensor(one.token_ids[len(one.token_ids) - one.scored :], dtype=torch.long)
    chosen = torch.log_softmax(logits, dim=-1).gather(1, targets[:, None])
    greedy = bool((logits.argmax(dim=-1) == targets).all())
    nats = -float(chosen.sum())
    if math.isnan(nats):
        raise NumericsError("the model produces NaN for a text; its weights are damaged or have diverged")
    return Likelihood(nats, one.scored, greedy, one.truncated, one.scored / one.continuation)
