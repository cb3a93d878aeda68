"""The n-gram model with interpolated Kneser–Ney smoothing, of any order.

Order 1 is the unigram model, order 0 the uniform distribution. Level m holds the distinct m-grams of a text
by their keys, (index of the m-gram without its last token) · V + last token, in ascending order, so that the
continuations of an m-gram are adjacent.

Shapes: B sequences, T positions, R = B·T, V vocabulary, S tokens of a text, N m-grams of a level, C contexts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from wholegpt.errors import DataError
from wholegpt.model.base import TokenModel
from wholegpt.settings.schema import ModelConfig

UNCERTAIN_DISCOUNT = 0.5
"""The discount if a text has no m-grams that occur once, or none that occur twice, to estimate it from."""


@dataclass(frozen=True)
class Level:
    """The distinct m-grams of a text."""

    keys: Int[np.ndarray, " N"]
    counts: Int[np.ndarray, " N"]
    """How often each m-gram occurs."""
    continuations: Int[np.ndarray, " N"]
    """How many distinct tokens precede each m-gram: N₁₊(• w₁…w_m)."""


def count_ngrams(token_ids: Int[np.ndarray, " S"], order: int, vocab_size: int) -> list[Level]:
    """Count the m-grams of levels 1 to ``order``.

    The continuation counts of the last level are unknown and set to 0. Raises ``DataError`` if the text has
    fewer tokens than ``order``.
    """
    if len(token_ids) < order:
        raise DataError(f"{len(token_ids)} tokens are too few for n-grams of order {order}")
    levels: list[Level] = []
    indices = np.zeros(len(token_ids) + 1, dtype=np.int64)  # index of the n-gram that ends at each position
    for size in range(1, order + 1):
        shorter = indices
        keys, indices, counts = np.unique(
            shorter[:-1] * vocab_size + token_ids[size - 1 :], return_inverse=True, return_counts=True
        )
        # the last size − 1 tokens of each distinct n-gram of this size are one of the shorter n-grams
        if levels:
            last = np.empty(len(keys), dtype=np.int64)
            last[indices] = shorter[1:]
            before = levels[-1]
            continuations = np.bincount(last, minlength=len(before.keys))
            levels[-1] = Level(before.keys, before.counts, continuations)
        levels.append(Level(keys, counts, np.zeros_like(counts)))
    return levels


def estimated_discount(counts: Int[np.ndarray, " N"]) -> float:
    """Compute D = n₁ / (n₁ + 2·n₂) from the numbers of m-grams counted once and twice (Ney et al. 1994)."""
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    return once / (once + 2 * twice) if once and twice else UNCERTAIN_DISCOUNT


def discounted(
    level: Level, counts: Int[np.ndarray, " N"], contexts: int, vocab_size: int, discount: float
) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " C"]]:
    """Compute α = max(c − D, 0) / Σ c and γ = D·N₁₊ / Σ c, with sums over the m-grams of the same context.

    N₁₊ is the number of these m-grams with a count above 0. γ is 1 for a context without counts.
    """
    of_context = level.keys // vocab_size
    totals = np.bincount(of_context, weights=counts, minlength=contexts)
    kinds = np.bincount(of_context, weights=counts > 0, minlength=contexts)
    safe = np.maximum(totals, 1)
    return np.maximum(counts - discount, 0) / safe[of_context], np.where(
        totals > 0, discount * kinds / safe, 1.0
    )


class NGram(TokenModel):
    """p(w | w₁…w_{n−1}) = α(w₁…w_{n−1} w) + γ(w₁…w_{n−1})·p(w | w₂…w_{n−1}) (Chen and Goodman 1999, section
    2.7).

    For whole n-grams α and γ are computed from counts, for shorter ones from continuation counts (Kneser and
    Ney 1995). Without context the probability is c(w) / Σ c. If the text lacks a token of the vocabulary,
    that distribution is discounted and interpolated with 1 / V.
    """

    def __init__(self, config: ModelConfig, sizes: Sequence[int] | None = None) -> None:
        """Initialize empty tables of N entries for each level, as ``sizes`` lists them.

        Without ``sizes`` the model is the uniform distribution.
        """
        super().__init__(config)
        self.sizes = sizes = list(sizes or [0] * config.ngram_order)
        total = sum(sizes)
        self.register_buffer("base", torch.full((config.vocab_size,), 1 / config.vocab_size))
        self.register_buffer("keys", torch.zeros(total, dtype=torch.long))
        self.register_buffer("alphas", torch.zeros(total))
        self.register_buffer("gammas", torch.ones(sum(sizes[:-1])))
        self.register_buffer("ends", torch.tensor(sizes, dtype=torch.long).cumsum(0))
        self.base: Tensor
        self.keys: Tensor
        self.alphas: Tensor
        self.gammas: Tensor
        self.ends: Tensor

    @classmethod
    def counted(cls, token_ids: Int[np.ndarray, " S"], config: ModelConfig) -> "NGram":
        """Return the model of a text. Raises ``DataError`` for a text with fewer tokens than the order."""
        model = cls(config)
        model.count(token_ids)
        return model

    def count(self, token_ids: Int[np.ndarray, " S"]) -> None:
        """Replace the tables by those of a text. Raises ``DataError`` for a text with fewer tokens than the order."""
        order, vocab_size = self.config.ngram_order, self.config.vocab_size
        if order == 0:
            return
        levels = count_ngrams(token_ids, order, vocab_size)
        alphas: list[np.ndarray] = []
        gammas: list[np.ndarray] = []
        contexts = 1
        for size, level in enumerate(levels, start=1):
            counts = level.counts if size == order else level.continuations
            discount = self.config.ngram_discount or estimated_discount(counts)
            alpha, gamma = discounted(level, counts, contexts, vocab_size, discount)
            alphas.append(alpha)
            gammas.append(gamma)
            contexts = len(level.keys)
            if size == 1:
                base = _without_context(level, counts, alpha, gamma, vocab_size)
                self.base.copy_(torch.from_numpy(base))
        self.sizes = [len(level.keys) for level in levels]
        device, dtype = self.keys.device, self.base.dtype
        self.keys = torch.from_numpy(np.concatenate([level.keys for level in levels])).to(device)
        self.alphas = torch.from_numpy(np.concatenate(alphas)).to(device, dtype)
        later = np.concatenate([np.zeros(0), *gammas[1:]])
        self.gammas = torch.from_numpy(later).to(device, dtype)
        self.ends = torch.tensor(self.sizes, dtype=torch.long, device=device).cumsum(0)

    @property
    def ends_at_context(self) -> bool:
        """Return ``False``: the model has no positions."""
        return False

    @property
    def device(self) -> torch.device:
        """Return the device of the tables."""
        return self.keys.device

    def forward(
        self, token_ids: Int[Tensor, "B T"], cache: "TokenCache | None" = None
    ) -> Float[Tensor, "B T V"]:
        """Return ln p of the token that follows each position."""
        everywhere = torch.ones_like(token_ids, dtype=torch.bool)
        return self.logits_at(token_ids, everywhere, cache).view(*token_ids.shape, -1)

    def logits_at(
        self, token_ids: Int[Tensor, "B T"], positions: Bool[Tensor, "B T"], cache: "TokenCache | None" = None
    ) -> Float[Tensor, "R V"]:
        """Return ``forward`` at the selected ``positions`` only, row by row."""
        seen = max(self.config.ngram_order - 1, 0)
        before = token_ids.new_full((len(token_ids), seen), -1) if cache is None else cache.last(seen)
        if cache is not None:
            cache.append(token_ids)
        length = token_ids.shape[1]
        ngrams = self._ngrams(torch.cat((before, token_ids), dim=1))
        return self._probabilities(
            [ngram[:, -length:][positions] for ngram in ngrams], int(positions.sum())
        ).log()

    def prefill(self, token_ids: Int[Tensor, "B T"], cache: "TokenCache") -> None:
        """Extend ``cache`` by tokens without computing probabilities."""
        cache.append(token_ids)

    def new_cache(self, batch_size: int, capacity: int = 0) -> "TokenCache":
        """Return an empty cache, which also takes more than ``capacity`` tokens (0: τ)."""
        positions = max(capacity or self.context_length, self.config.ngram_order)
        tokens = torch.full((batch_size, positions), -1, device=self.device)
        return TokenCache(tokens, torch.zeros(batch_size, dtype=torch.long), self.config)

    def cache_bytes(self, batch_size: int, capacity: int) -> int:
        """Return 8 bytes per token."""
        return 8 * batch_size * max(capacity, self.config.ngram_order)

    @property
    def parameter_count(self) -> int:
        """Return the number of parameters: p of each token, α of each longer n-gram and γ of each context.

        The uniform distribution has none.
        """
        if not self.sizes:
            return 0
        return len(self.base) + sum(self.sizes[1:]) + len(self.gammas)

    def _level(self, size: int) -> slice:
        """Return the slice of the tables that holds the n-grams of ``size`` tokens."""
        end = int(self.ends[size - 1])
        return slice(end - self.sizes[size - 1], end)

    def _ngrams(self, token_ids: Int[Tensor, "B S"]) -> list[Int[Tensor, "B S"]]:
        """Return for m from 1 to order − 1 the index of the m-gram that ends at each position; −1 if the text
        had none.
        """
        ngrams: list[Tensor] = []
        shorter = torch.zeros_like(token_ids)
        for size in range(1, self.config.ngram_order):
            before = (
                torch.zeros_like(shorter)
                if size == 1
                else nn.functional.pad(shorter[:, :-1], (1, 0), value=-1)
            )
            keys = self.keys[self._level(size)]
            wanted = before * self.vocab_size + token_ids
            found = torch.searchsorted(keys, wanted).clamp(max=max(len(keys) - 1, 0))
            known = (before >= 0) & (token_ids >= 0)
            known = known & (keys[found] == wanted) if len(keys) else torch.zeros_like(known)
            shorter = torch.where(known, found, -1)
            ngrams.append(shorter)
        return ngrams

    def _probabilities(self, ngrams: Sequence[Int[Tensor, " R"]], rows: int) -> Float[Tensor, "R V"]:
        """Compute Σ over context lengths of α, each times the γ of the longer contexts."""
        found = torch.zeros(rows, self.vocab_size, device=self.device)
        weight = torch.ones(rows, device=self.device)
        first_gamma = int(self.ends[-2]) if len(self.sizes) > 1 else 0
        for size in reversed(range(1, self.config.ngram_order)):
            first_gamma -= self.sizes[size - 1]
            level = self._level(size + 1)
            keys, alphas = self.keys[level], self.alphas[level]
            known = (ngrams[size - 1] >= 0).nonzero()[:, 0]
            context = ngrams[size - 1][known]
            starts = torch.searchsorted(keys, context * self.vocab_size)
            counts = torch.searchsorted(keys, (context + 1) * self.vocab_size) - starts
            row = known.repeat_interleave(counts)
            offsets = torch.arange(len(row), device=row.device) - (
                counts.cumsum(0) - counts
            ).repeat_interleave(counts)
            child = starts.repeat_interleave(counts) + offsets
            flat_index = row * self.vocab_size + keys[child] % self.vocab_size
            found.view(-1).index_add_(0, flat_index, weight[row] * alphas[child])
            weight[known] *= self.gammas[first_gamma + context]
        return found.addcmul_(weight[:, None], self.base[None])


def ngram_sizes(tensors: Mapping[str, Tensor]) -> list[int]:
    """Return N of each level of the model stored as ``tensors``; an empty list for another model or damaged
    tables.
    """
    ends = tensors.get("ends")
    if ends is None or ends.ndim != 1 or ends.dtype != torch.long:
        return []
    sizes = ends.diff(prepend=ends.new_zeros(1)).tolist()
    return sizes if min(sizes, default=0) >= 0 else []


def _without_context(
    level: Level,
    counts: Int[np.ndarray, " N"],
    alpha: Float[np.ndarray, " N"],
    gamma: Float[np.ndarray, " C"],
    vocab_size: int,
) -> Float[np.ndarray, " V"]:
    """Return p(w) of the whole vocabulary."""
    whole = np.zeros(vocab_size)
    if (counts > 0).sum() == vocab_size:
        whole[level.keys] = counts / counts.sum()
        return whole
    whole[level.keys] = alpha
    return whole + gamma[0] / vocab_size


class TokenCache:
    """The last tokens of each sequence; the token at position p is stored at index p mod capacity."""

    can_rewind = True
    padded_capacity = 0

    def __init__(self, tokens: Int[Tensor, "B S"], lengths: Int[Tensor, " B"], config: ModelConfig) -> None:
        self.tokens, self.lengths, self._config = tokens, lengths, config

    def last(self, count: int) -> Int[Tensor, "B S"]:
        """Return the last ``count`` tokens of each sequence, with −1 before its start."""
        positions = self.lengths.to(self.tokens.device)[:, None] + torch.arange(
            -count, 0, device=self.tokens.device
        )
        stored = self.tokens.gather(1, positions % self.tokens.shape[1])
        return torch.where(positions >= 0, stored, -1)

    def append(self, token_ids: Int[Tensor, "B T"]) -> None:
        """Append T tokens to every sequence."""
        room = self.tokens.shape[1]
        kept = token_ids[:, -room:]
        skipped = token_ids.shape[1] - kept.shape[1]
        first = self.lengths.to(kept.device)[:, None] + skipped
        self.tokens.scatter_(1, (first + torch.arange(kept.shape[1], device=kept.device)) % room, kept)
        self.lengths += token_ids.shape[1]

    def can_rewind_to(self, row: int, length: int) -> bool:
        """Return whether the context of the next token after ``length`` tokens is still stored."""
        beyond = int(self.lengths[row]) - self.tokens.shape[1]
        return beyond <= max(0, length + 1 - self._config.ngram_order)

    def rows(self, first: int, last: int) -> "TokenCache":
        """Return sequences ``first`` to ``last`` − 1 as a view of the same memory."""
        return TokenCache(self.tokens[first:last], self.lengths[first:last], self._config)

    def copy_row(self, source: int, target: int, length: int | None = None) -> None:
        """Copy sequence ``source`` to ``target``, or only its first ``length`` tokens."""
        self.tokens[target] = self.tokens[source]
        self.lengths[target] = self.lengths[source] if length is None else length

    def reorder(self, sources: Sequence[int]) -> None:
        """Replace sequence i by sequence ``sources[i]``, all at once; later sequences stay."""
        chosen = list(sources)
        self.tokens[: len(chosen)] = self.tokens[chosen]
        self.lengths[: len(chosen)] = self.lengths[chosen]

    def clear(self) -> None:
        """Remove all tokens but keep the memory."""
        self.lengths.zero_()

    def repeated(self, batch_size: int, capacity: int) -> "TokenCache":
        """Return a cache for ``batch_size`` copies of the single sequence of this one."""
        return TokenCache(self.tokens.repeat(batch_size, 1), self.lengths.repeat(batch_size), self._config)
