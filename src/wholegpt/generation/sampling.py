"""Draw a token from logits: apply the logits processors of a request in order, then sample.

Logits have shape (V,), for one sequence.
"""

import math
from collections.abc import Sequence
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
        self.log_probability = 0.0
        """ln p of the last token drawn, in nats, in the distribution that it was drawn from."""
        self._ends: frozenset[int] = frozenset()
        self._unused: list[int] = []
        self._banned: list[BannedText] = []
        self._forced: list[tuple[bytes, list[int]]] = []
        self._constraint: Constraint | None = None
        if tokenizer is not None:
            self._prepare_texts(tokenizer)

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

    def draw(self, logits: Float[Tensor, " V"], generated: Sequence[int]) -> int:
        """Return the token after ``generated``.

        At temperature 0 this is the most likely token. Otherwise it is the first token whose cumulative
        probability exceeds a uniform number computed from the seed and the position.
        """
        processed = self.process(logits, generated)
        if self.config.temperature == 0:
            self.log_probability = 0.0
            return int(processed.argmax())
        probabilities = torch.softmax(processed, dim=-1)
        cumulated = probabilities.cumsum(0).numpy()
        # Otherwise rounding could give 1, for which there is no token.
        threshold = min(mix_seed(self.config.seed, len(generated)) / 2**63, 1 - 2**-52) * cumulated[-1]
        token_id = int(np.searchsorted(cumulated, threshold, side="right"))
        self.log_probability = math.log(probabilities[token_id])
        return token_id

    def process(self, logits: Float[Tensor, " V"], generated: Sequence[int]) -> Float[Tensor, " V"]:
        """Return the logits whose softmax the next token is drawn from."""
        restricted = self.restrict(logits, generated)
        return restricted if self.config.temperature == 0 else self._shape(restricted)

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

    def _shape(self, logits: Float[Tensor, " V"]) -> Float[Tensor, " V"]:
        config = self.config
        logits = processors.scale_by_temperature(logits, config.temperature)
        if config.top_k:
            logits = processors.keep_top_k(logits, config.top_k)
        if config.top_p < 1:
            logits = processors.keep_top_p(logits, config.top_p)
        if config.min_p:
            logits = processors.keep_min_p(logits, config.min_p)
        return logits

    def _required(self, generated: Sequence[int]) -> int | None:
        """Return the next token of a forced text, if the limit leaves room for the outstanding tokens only."""
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
    """A text that is never completed, in whatever tokens."""

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
