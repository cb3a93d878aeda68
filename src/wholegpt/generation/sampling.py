"""Draw a token from logits: apply the logits processors of a request in order, then sample.

Shapes: B sequences, V vocabulary.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from wholegpt.errors import ConfigError
from wholegpt.generation import processors
from wholegpt.generation.constraints import Constraint, NothingLeftError
from wholegpt.runtime import mix_seed
from wholegpt.settings.schema import GenerationConfig
from wholegpt.settings.validation import check_generation
from wholegpt.tokenizers import Tokenizer

LOGITS_AT_ONCE = 2**18
"""Most logits that are processed at once, so that they stay in the processor's cache."""


class Draw(NamedTuple):
    """A token that was drawn."""

    token_id: int
    log_probability: float
    """ln p of the token, in nats, in the distribution that it was drawn from; 0 at temperature 0."""


class Sampler:
    """The sampler of one request.

    Its n-th draw is a function of the logits, the text so far, the request's seed and n alone. Neither other
    sequences in the batch nor earlier draws change it.
    """

    def __init__(
        self, config: GenerationConfig, tokenizer: Tokenizer | None = None, prompt: Sequence[int] = ()
    ) -> None:
        """Set up the processors.

        ``tokenizer`` is needed for banned and forced texts, ``regex``, ``json_schema`` and end-of-text.
        Raises ``ConfigError`` for settings that this vocabulary cannot satisfy.
        """
        check_generation(config)
        self.config, self.prompt = config, list(prompt)
        self._ends: frozenset[int] = frozenset()
        self._unused: list[int] = []
        self._banned: list[BannedText] = []
        self._forced: list[tuple[bytes, list[int]]] = []
        self._constraint: Constraint | None = None
        if tokenizer is not None:
            self._prepare_texts(tokenizer)
        looks_back = (
            *(config.banned, config.forced, config.regex, config.json_schema, config.logit_bias),
            *(config.repetition_penalty != 1, config.frequency_penalty, config.presence_penalty),
            *(config.no_repeat_ngram, config.min_tokens),
        )
        shared = config.temperature, config.top_k, config.top_p, config.min_p, tuple(self._unused)
        self.shared: tuple[object, ...] | None = None if any(looks_back) else shared
        """A key that is equal for samplers whose tokens ``draw_rows`` may draw together; None if there are biases, or a
        processor that depends on the text so far."""

    def _prepare_texts(self, tokenizer: Tokenizer) -> None:
        config = self.config
        self._token_bytes = tokenizer.token_bytes if config.banned or config.forced else []
        self._ends, self._unused = tokenizer.end_ids, tokenizer.unused_ids
        self._banned = [_banned_text(text, tokenizer) for text in config.banned]
        for text in config.forced:
            token_ids = tokenizer.encode(text, continues=True)
            # Use the bytes of the tokens: a tokenizer may, for example, lowercase the text.
            content = b"".join(self._token_bytes[token_id] for token_id in token_ids)
            self._forced.append((content, token_ids))
            for banned in config.banned:
                if banned.encode() in content:
                    raise ConfigError(
                        f"{text!r} is forced and contains {banned!r}, which is banned; leave one out"
                    )
            for stop in config.stop:
                if stop.encode() in content:
                    raise ConfigError(f"{text!r} is forced and contains {stop!r}, a stop text; leave one out")
        if config.regex or config.json_schema:
            self._constraint = Constraint(config, tokenizer, self.prompt[-1] if self.prompt else None)
        needed = sum(len(token_ids) for _, token_ids in self._forced)
        if needed > config.max_tokens:
            raise ConfigError(
                f"the forced texts take {needed} tokens and max_tokens is {config.max_tokens}; increase it"
            )
        for token_id, _ in config.logit_bias:
            if not 0 <= token_id < tokenizer.vocab_size:
                raise ConfigError(
                    f"logit_bias names token {token_id}; ids go from 0 to {tokenizer.vocab_size - 1}"
                )

    def ends(self, token_id: int) -> bool:
        """Return whether a token ends the text."""
        return token_id in self._ends

    def has_outstanding(self, generated: Sequence[int]) -> bool:
        """Return whether a forced text has not been generated yet."""
        return bool(self._outstanding(generated))

    def complete(self, generated: Sequence[int]) -> bool:
        """Return whether ``generated`` satisfies ``regex`` or ``json_schema`` and nothing can follow it."""
        return self._constraint is not None and self._constraint.complete(generated)

    def draw(self, logits: Float[Tensor, " V"], generated: Sequence[int]) -> Draw:
        """Draw the token after ``generated``.

        At temperature 0 this is the most likely token. Otherwise it is the first token whose cumulative
        probability exceeds a uniform number computed from the seed and the position.
        """
        return _draw([self], self.process(logits, generated)[None], [generated])[0]

    def process(self, logits: Float[Tensor, " V"], generated: Sequence[int]) -> Float[Tensor, " V"]:
        """Return the logits whose softmax the next token is drawn from."""
        return _shape(self.restrict(logits, generated), self.config)

    def restrict_unused(self, logits: Float[Tensor, "*B V"]) -> Float[Tensor, "*B V"]:
        """Set the logits of ids without a token to −∞."""
        return processors.forbid(logits, self._unused) if self._unused else logits

    def restrict(self, logits: Float[Tensor, " V"], generated: Sequence[int]) -> Float[Tensor, " V"]:
        """Return the logits after biases, penalties, bans and constraints, before temperature and truncation."""
        config = self.config
        required = self._required(generated)
        if required is not None:
            return torch.full_like(logits, processors.NEVER).index_fill(0, torch.tensor([required]), 0.0)
        token_ids = [*self.prompt, *generated]
        if config.logit_bias:
            logits = processors.add_bias(logits, config.logit_bias)
        if config.repetition_penalty != 1:
            logits = processors.penalize_repetition(logits, token_ids, config.repetition_penalty)
        if config.frequency_penalty or config.presence_penalty:
            frequency, presence = config.frequency_penalty, config.presence_penalty
            logits = processors.penalize_frequency(logits, generated, frequency, presence)
        forbidden = [token_id for banned in self._banned for token_id in banned.completing(token_ids)]
        if config.no_repeat_ngram:
            forbidden += processors.ends_of_repeated_ngrams(token_ids, config.no_repeat_ngram)
        forbidden += self._unused
        if self._ends and (len(generated) < config.min_tokens or self._outstanding(generated)):
            forbidden += self._ends
        if forbidden:
            logits = processors.forbid(logits, forbidden)
        if self._constraint is not None:
            logits = processors.keep_allowed(logits, self._constraint.allowed(generated))
        if (forbidden or self._constraint is not None) and bool(logits.max() == processors.NEVER):
            raise NothingLeftError(
                "every token is forbidden: banned, a repeated n-gram, or outside regex or json_schema; "
                "nothing more can be generated"
            )
        return logits

    def _required(self, generated: Sequence[int]) -> int | None:
        """Return the next token of a forced text if ``max_tokens`` leaves room only for the missing forced tokens."""
        outstanding = self._outstanding(generated)
        if not outstanding:
            return None
        first = outstanding[0]
        matched = next(
            n for n in range(len(first) - 1, -1, -1) if list(generated[len(generated) - n :]) == first[:n]
        )
        # A partly generated forced text may still be abandoned while tokens are drawn freely, so all of it
        # counts.
        needed = sum(map(len, outstanding))
        return first[matched] if self.config.max_tokens - len(generated) <= needed else None

    def _outstanding(self, generated: Sequence[int]) -> list[list[int]]:
        """Return the tokens of each forced text that has not been generated."""
        if not self._forced:
            return []
        text = b"".join(self._token_bytes[token_id] for token_id in generated)
        return [token_ids for content, token_ids in self._forced if content not in text]


def draw_rows(
    samplers: Sequence[Sampler], logits: Float[Tensor, "B V"], generated: Sequence[Sequence[int]]
) -> list[Draw | None]:
    """Return what ``Sampler.draw`` returns for each row that can be drawn together with another one, else None."""
    found: list[Draw | None] = [None] * len(samplers)
    groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for row, sampler in enumerate(samplers):
        if sampler.shared is not None:
            groups[sampler.shared].append(row)
    at_once = max(1, LOGITS_AT_ONCE // logits.shape[-1])
    for rows in groups.values():
        if len(rows) == 1:
            continue
        for start in range(0, len(rows), at_once):
            some = rows[start : start + at_once]
            drawn = _draw_alike(
                [samplers[row] for row in some],
                logits[some],
                [generated[row] for row in some],
            )
            for row, one in zip(some, drawn, strict=True):
                found[row] = one
    return found


def _draw_alike(
    samplers: Sequence[Sampler], logits: Float[Tensor, "B V"], generated: Sequence[Sequence[int]]
) -> Sequence[Draw | None]:
    """Draw a token from each row, given samplers with the same key ``shared``."""
    first = samplers[0]
    allowed = first.restrict_unused(logits)
    if bool((allowed.amax(-1) == processors.NEVER).any()):
        return [None] * len(samplers)
    return _draw(samplers, _shape(allowed, first.config), generated)


def _shape(logits: Float[Tensor, "*B V"], config: GenerationConfig) -> Float[Tensor, "*B V"]:
    """Apply temperature and truncation; at temperature 0, return the logits as they are."""
    if config.temperature == 0:
        return logits
    logits = processors.scale_by_temperature(logits, config.temperature)
    if config.top_k:
        logits = processors.keep_top_k(logits, config.top_k)
    if config.top_p < 1:
        logits = processors.keep_top_p(logits, config.top_p)
    if config.min_p:
        logits = processors.keep_min_p(logits, config.min_p)
    return logits


def _draw(
    samplers: Sequence[Sampler], processed: Float[Tensor, "B V"], generated: Sequence[Sequence[int]]
) -> list[Draw]:
    """Draw a token from each row of processed logits, given samplers of the same temperature."""
    if samplers[0].config.temperature == 0:
        return [Draw(token_id, 0.0) for token_id in processed.argmax(-1).tolist()]
    # A loop over NumPy arrays takes a quarter of the time that operators of PyTorch take for one row of 259 tokens.
    softmax = torch.softmax(processed, dim=-1)
    probabilities, cumulated = softmax.numpy(), softmax.cumsum(-1).numpy()
    drawn: list[Draw] = []
    for sampler, tokens, of_tokens, sums in zip(samplers, generated, probabilities, cumulated, strict=True):
        # Rounding could give 1, for which there is no token.
        uniform = min(mix_seed(sampler.config.seed, len(tokens)) / 2**63, 1 - 2**-52)
        token_id = int(sums.searchsorted(np.float64(uniform * float(sums[-1])), side="right"))
        drawn.append(Draw(token_id, math.log(of_tokens[token_id])))
    return drawn


MOST_KNOWN = 100
"""Banned texts that are cached for each tokenizer."""
_known_banned: "WeakKeyDictionary[Tokenizer, dict[str, BannedText]]" = WeakKeyDictionary()


def _banned_text(text: str, tokenizer: Tokenizer) -> "BannedText":
    """Return the banned text from a cache, so that only the first request with it searches the vocabulary."""
    known = _known_banned.setdefault(tokenizer, {})
    banned = known.get(text)
    if banned is None:
        banned = BannedText(text, tokenizer.token_bytes)
        if len(known) >= MOST_KNOWN:
            known.clear()
        known[text] = banned
    return banned  # not looked up again: another thread may have cleared ``known``


class BannedText:
    """A text that is never generated, however it is tokenized."""

    def __init__(self, text: str, token_bytes: Sequence[bytes]) -> None:
        self._content, self._token_bytes = text.encode(), token_bytes
        rests = {self._content[matched:]: matched for matched in range(1, len(self._content))}
        self._containing: list[int] = []
        self._after: list[list[int]] = [[] for _ in range(len(self._content))]
        for token_id, content in enumerate(token_bytes):
            if self._content in content:
                self._containing.append(token_id)
            for length in range(1, len(content) + 1):
                matched = rests.get(content[:length])
                if matched is not None:
                    self._after[matched].append(token_id)

    def completing(self, token_ids: Sequence[int]) -> list[int]:
        """Return the tokens that would complete the text after ``token_ids``."""
        end = b""
        for token_id in reversed(token_ids):
            if len(end) >= len(self._content) - 1:
                break
            end = self._token_bytes[token_id] + end
        found = list(self._containing)
        for matched, following in enumerate(self._after):
            if following and end.endswith(self._content[:matched]):
                found += following
        return found
