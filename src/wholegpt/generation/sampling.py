"""From logits to a token: the processors of a request in their order, then one draw.

Logits are of shape (V,), for one sequence.
"""

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
    """Draws the tokens of one request.

    Its n-th draw is a function of the logits, the text so far, the request's seed and n alone: no companion in a batch,
    and no draw before it, changes it.
    """

    def __init__(
        self, config: GenerationConfig, tokenizer: Tokenizer | None = None, prompt: Sequence[int] = ()
    ) -> None:
        """``tokenizer`` is needed for banned and forced texts, ``regex``, ``json_schema``, and to know the end.

        Raises ``ConfigError`` for settings that this vocabulary cannot meet.
        """
        check_generation(config)
        self.config, self.prompt = config, list(prompt)
        self._ends: frozenset[int] = frozenset()
        self._unused: list[int] = []
        self._banned: list[BannedText] = []
        self._forced: list[tuple[bytes, list[int]]] = []
        self._constraint: Constraint | None = None
        if tokenizer is not None:
            self._read_texts(tokenizer)

    def _read_texts(self, tokenizer: Tokenizer) -> None:
        config = self.config
        self._token_bytes = tokenizer.token_bytes if config.banned or config.forced else []
        self._ends, self._unused = tokenizer.end_ids, tokenizer.unused_ids
        self._banned = [_banned_text(text, tokenizer) for text in config.banned]
        for text in config.forced:
            token_ids = tokenizer.encode(text)
            # As the tokens spell it: a tokenizer may lower-case, for one.
            content = b"".join(self._token_bytes[token_id] for token_id in token_ids)
            self._forced.append((content, token_ids))
            for banned in config.banned:
                if banned.encode() in content:
                    raise ConfigError(
                        f"{text!r} is forced and holds {banned!r}, which is banned; leave one out"
                    )
            for stop in config.stop:
                if stop.encode() in content:
                    raise ConfigError(f"{text!r} is forced and holds {stop!r}, a stop text; leave one out")
        if config.regex or config.json_schema:
            self._constraint = Constraint(config, tokenizer)
        needed = sum(len(token_ids) for _, token_ids in self._forced)
        if needed > config.max_tokens:
            raise ConfigError(
                f"the forced texts take {needed} tokens and max_tokens is {config.max_tokens}; allow more"
            )
        for token_id, _ in config.logit_bias:
            if not 0 <= token_id < tokenizer.vocab_size:
                raise ConfigError(
                    f"logit_bias names token {token_id}; ids go from 0 to {tokenizer.vocab_size - 1}"
                )

    def ends(self, token_id: int) -> bool:
        """Whether a token is the end of the text."""
        return token_id in self._ends

    def owes(self, written: Sequence[int]) -> bool:
        """Whether a forced text is still to be written."""
        return bool(self._outstanding(written))

    def complete(self, written: Sequence[int]) -> bool:
        """Whether ``written`` is all of what ``regex`` or ``json_schema`` asks for, and nothing can follow it."""
        return self._constraint is not None and self._constraint.complete(written)

    def draw(self, logits: Float[Tensor, " V"], written: Sequence[int]) -> int:
        """The token after ``written``: the likeliest at temperature 0, else the one where the cumulated probability
        first exceeds a number that seed and place give.
        """
        processed = self.process(logits, written)
        if self.config.temperature == 0:
            return int(processed.argmax())
        cumulated = torch.softmax(processed, dim=-1).cumsum(0).numpy()
        # Rounded, the largest number would be 1, at which there is no token.
        place = min(mix_seed(self.config.seed, len(written)) / 2**63, 1 - 2**-52) * cumulated[-1]
        return int(np.searchsorted(cumulated, place, side="right"))

    def process(self, logits: Float[Tensor, " V"], written: Sequence[int]) -> Float[Tensor, " V"]:
        """The logits whose softmax the next token is drawn from."""
        restricted = self.restrict(logits, written)
        return restricted if self.config.temperature == 0 else self._shape(restricted)

    def restrict(self, logits: Float[Tensor, " V"], written: Sequence[int]) -> Float[Tensor, " V"]:
        """The logits after all that is not about drawing: biases, penalties, what is forbidden or required."""
        config = self.config
        required = self._required(written)
        if required is not None:
            return torch.full_like(logits, processors.NEVER).index_fill(0, torch.tensor([required]), 0.0)
        token_ids = [*self.prompt, *written]
        if config.logit_bias:
            logits = processors.add_bias(logits, config.logit_bias)
        if config.repetition_penalty != 1:
            logits = processors.penalize_repetition(logits, token_ids, config.repetition_penalty)
        if config.frequency_penalty or config.presence_penalty:
            frequency, presence = config.frequency_penalty, config.presence_penalty
            logits = processors.penalize_frequency(logits, written, frequency, presence)
        forbidden = [token_id for banned in self._banned for token_id in banned.completing(token_ids)]
        if config.no_repeat_ngram:
            forbidden += processors.ends_of_repeated_ngrams(token_ids, config.no_repeat_ngram)
        forbidden += self._unused
        if self._ends and (len(written) < config.min_tokens or self._outstanding(written)):
            forbidden += self._ends
        if forbidden:
            logits = processors.forbid(logits, forbidden)
        if self._constraint is not None:
            logits = processors.keep_allowed(logits, self._constraint.allowed(written))
        if (forbidden or self._constraint is not None) and bool(logits.max() == processors.NEVER):
            raise NothingLeftError(
                "every token is forbidden: banned, not to come twice, or outside regex or json_schema; "
                "nothing more can be written"
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

    def _required(self, written: Sequence[int]) -> int | None:
        """The next token of a forced text, where the limit leaves just room for what is outstanding."""
        outstanding = self._outstanding(written)
        if not outstanding:
            return None
        first = outstanding[0]
        begun = next(
            n for n in range(len(first) - 1, -1, -1) if list(written[len(written) - n :]) == first[:n]
        )
        # What is begun may be broken off as long as tokens are drawn freely, so it does not count as written.
        needed = sum(map(len, outstanding))
        return first[begun] if self.config.max_tokens - len(written) <= needed else None

    def _outstanding(self, written: Sequence[int]) -> list[list[int]]:
        """The tokens of each forced text that has not been written."""
        if not self._forced:
            return []
        text = b"".join(self._token_bytes[token_id] for token_id in written)
        return [token_ids for content, token_ids in self._forced if content not in text]


MOST_KNOWN = 100
"""Banned texts that are kept ready for each tokenizer."""
_known_banned: "WeakKeyDictionary[Tokenizer, dict[str, BannedText]]" = WeakKeyDictionary()


def _banned_text(text: str, tokenizer: Tokenizer) -> "BannedText":
    """Of many requests with the same banned text, only the first looks through the vocabulary."""
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
        rests = {self._content[begun:]: begun for begun in range(1, len(self._content))}
        self._holding: list[int] = []
        self._after: list[list[int]] = [[] for _ in range(len(self._content))]
        for token_id, content in enumerate(token_bytes):
            if self._content in content:
                self._holding.append(token_id)
            for length in range(1, len(content) + 1):
                begun = rests.get(content[:length])
                if begun is not None:
                    self._after[begun].append(token_id)

    def completing(self, token_ids: Sequence[int]) -> list[int]:
        """The tokens that would complete the text after ``token_ids``."""
        end = b""
        for token_id in reversed(token_ids):
            if len(end) >= len(self._content) - 1:
                break
            end = self._token_bytes[token_id] + end
        found = list(self._holding)
        for begun, following in enumerate(self._after):
            if following and end.endswith(self._content[:begun]):
                found += following
        return found
