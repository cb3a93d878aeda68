"""Constrained decoding: the whole completion matches a regular expression, or is JSON that a schema allows.

The constraint is followed byte by byte by llguidance, an Earley parser over regular expressions that are
derived lazily. Nothing is compiled in advance, and every token that may follow is known, whatever bytes it
consists of.
"""

import json
import re
import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from wholegpt.errors import ConfigError
from wholegpt.generation.json_schema import check_pattern, read_schema
from wholegpt.settings.schema import GenerationConfig
from wholegpt.settings.validation import MOST_CHARACTERS
from wholegpt.tokenizers import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MOST_WORK = 5_000_000
"""Work limit per token, in the library's units; takes at most 0.1 s. The library's default of 200,000 rejects
many bounded repetitions.
"""
ONE_SPACE = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
"""White space in JSON: at most one space after a comma or a colon."""
_vocabularies: "WeakKeyDictionary[Tokenizer, LLTokenizer]" = WeakKeyDictionary()
_building_vocabulary = threading.Lock()
_last_matcher: "WeakKeyDictionary[Tokenizer, tuple[str, LLMatcher]]" = WeakKeyDictionary()
"""The last grammar per vocabulary: many requests share one grammar, and copying its matcher is cheap."""


class NothingLeftError(ConfigError):
    """The settings forbid every token that could follow."""


class Constraint:
    """The tokens that a regex or JSON schema allows after the tokens generated so far, for one request."""

    def __init__(self, config: GenerationConfig, tokenizer: Tokenizer, after: int | None = None) -> None:
        """Compile ``config.regex`` or ``config.json_schema`` for a text that follows the token ``after``.

        At the start of a text, the first token includes the space that the tokenizer adds and that decoding drops.
        Raises ``ConfigError`` for a constraint that is invalid, too large, or that no text of this vocabulary matches,
        and ``ModuleNotFoundError`` without llguidance.
        """
        self.name = "regex" if config.regex else "json_schema"
        content = config.regex or config.json_schema
        if len(content) > MOST_CHARACTERS:
            raise ConfigError(
                f"{self.name} has {len(content):,} characters; expected at most {MOST_CHARACTERS:,}"
            )
        if tokenizer.marks_word_ends:
            raise ConfigError(
                f"{self.name} needs a tokenizer whose tokens spell out their text; this one adds spaces between words"
            )
        self._tokenizer = tokenizer
        # Kept, so that going back to the beginning never compiles the grammar again.
        start = '" " text\ntext: ' if tokenizer.begins_after(after) else ""
        self._beginning = _matcher(
            tokenizer, f'%llguidance {{"no_forcing": true}}\nstart: {start}{_rule(config)}'
        )
        self._ends = list(tokenizer.end_ids)
        self._start()
        if self.complete([]):
            raise ConfigError(f"{self.name}: with this vocabulary only the empty text matches it")

    def allowed(self, generated: Sequence[int]) -> Bool[Tensor, " V"]:
        """Return which tokens may follow ``generated``: end-of-text if the text may end, and no other special
        token.

        Raises ``NothingLeftError`` if no matching text starts with ``generated``.
        """
        self._follow(generated)
        return self._allowed

    def complete(self, generated: Sequence[int]) -> bool:
        """Return whether ``generated`` matches and nothing but the end can follow."""
        self._follow(generated)
        return self._may_end and not self._may_continue

    def _start(self) -> None:
        self._matcher = self._beginning.deep_copy()
        self._followed: list[int] = []
        self._look()

    def _follow(self, generated: Sequence[int]) -> None:
        known = len(self._followed)
        if list(generated[:known]) != self._followed:
            self._start()
            known = 0
        if len(generated) > known:
            followed = list(generated)
            if not self._matcher.consume_tokens(followed[known:]):
                problem = _problem(self._matcher)
                self._start()
                raise NothingLeftError(f"{self.name}: the text so far cannot be continued: {problem}")
            self._look()
            self._followed = followed

    def _look(self) -> None:
        """Compute which tokens may follow. The library's end-of-text id is one past the vocabulary."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        allowed = np.unpackbits(bits, count=self._tokenizer.vocab_size + 1, bitorder="little").view(np.bool_)
        if self._matcher.is_error():
            raise NothingLeftError(f"{self.name}: {_problem(self._matcher)}")
        self._may_end, self._may_continue = bool(allowed[-1]), bool(allowed[:-1].any())
        allowed[self._ends] = self._may_end
        self._allowed = torch.from_numpy(allowed[:-1])


def _rule(config: GenerationConfig) -> str:
    from llguidance import regex_to_lark

    if config.json_schema:
        return "%json " + json.dumps({**read_schema(config.json_schema), "x-guidance": ONE_SPACE})
    check_pattern(config.regex, "regex")
    try:
        return f"/{regex_to_lark(config.regex, '')}/"
    except UnicodeEncodeError:
        raise ConfigError("regex: contains a lone surrogate, which is not a character") from None


def _matcher(tokenizer: Tokenizer, grammar: str) -> "LLMatcher":
    """Return a matcher for ``grammar`` at the start of a text."""
    from llguidance import LLMatcher, LLParserLimits

    known, matcher = _last_matcher.get(tokenizer, ("", None))
    if matcher is None or known != grammar:
        limits = LLParserLimits(step_lexer_fuel=MOST_WORK, verbose_errors=False)
        matcher = LLMatcher(_vocabulary(tokenizer), grammar, log_level=0, limits=limits)
        _last_matcher[tokenizer] = grammar, matcher
    return matcher.deep_copy()


def _vocabulary(tokenizer: Tokenizer) -> "LLTokenizer":
    """Return the library's form of a vocabulary, cached as long as ``tokenizer``; special tokens have no bytes."""
    from llguidance import LLTokenizer, TokenizerWrapper

    with _building_vocabulary:
        if tokenizer not in _vocabularies:
            sizes = tokenizer.text_sizes[:, 0]
            spelled = [one if size else b"" for one, size in zip(tokenizer.token_bytes, sizes, strict=True)]
            end = len(spelled)
            _vocabularies[tokenizer] = LLTokenizer(
                TokenizerWrapper(
                    SimpleNamespace(
                        tokens=[*spelled, b""], special_token_ids=[end], eos_token_id=end, bos_token_id=None
                    )
                )
            )
        return _vocabularies[tokenizer]


def _problem(matcher: "LLMatcher") -> str:
    """Return the library's error message in one line, without the grammar around it."""
    lines = matcher.get_error().partition("\n   1 |")[0].splitlines()
    if not lines or lines[0].startswith("NoExtension"):
        return "no text of this vocabulary matches it"
    if lines[0].startswith("lexer"):
        return "grows too large to follow; reduce its repetitions"
    last = lines[0] if lines[-1].startswith("<") else lines[-1]
    around = r"(at \d+\(\d+\): )?(invalid regex .*\(in regex\): |failed to compile JSON schema: )?(error: )?"
    return re.sub(f"^{around}", "", last).partition(". ")[0][:300]
