"""A text held to a form: the whole of it matches a regular expression, or is JSON that a schema allows.

The form is kept byte by byte by llguidance, an Earley parser over regular expressions that are derived as they are met,
so nothing is unfolded beforehand and every token that may follow is known, whatever bytes it spells.
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
"""Most work for one token, in the library's units: at most 0.1 s seen. Its own 200,000 stop many bounded repeats."""
ONE_SPACE = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
"""White space in JSON: at most a space after a comma or a colon."""
_vocabularies: "WeakKeyDictionary[Tokenizer, LLTokenizer]" = WeakKeyDictionary()
_building_vocabulary = threading.Lock()
_last_read: "WeakKeyDictionary[Tokenizer, tuple[str, LLMatcher]]" = WeakKeyDictionary()
"""The grammar that was read last for a vocabulary: many texts are of one form, and copies cost nothing."""


class NothingLeftError(ConfigError):
    """The settings forbid every token that could follow."""


class Constraint:
    """Says which tokens may follow what one request has written. It follows ``written`` wherever that goes."""

    def __init__(self, config: GenerationConfig, tokenizer: Tokenizer) -> None:
        """Of ``config.regex`` or ``config.json_schema``.

        Raises ``ConfigError`` for one that cannot be read, is too large, or that nothing of this vocabulary matches,
        ``ModuleNotFoundError`` without llguidance.
        """
        self.name = "regex" if config.regex else "json_schema"
        content = config.regex or config.json_schema
        if len(content) > MOST_CHARACTERS:
            raise ConfigError(
                f"{self.name} has {len(content):,} characters; expected at most {MOST_CHARACTERS:,}"
            )
        if tokenizer.marks_word_ends:
            raise ConfigError(
                f"{self.name} needs a tokenizer whose tokens spell their text; this one sets spaces between words"
            )
        self._tokenizer = tokenizer
        # Kept, so that going back to the beginning never compiles the grammar again.
        self._beginning = _matcher(tokenizer, f'%llguidance {{"no_forcing": true}}\nstart: {_rule(config)}')
        self._ends = list(tokenizer.end_ids)
        self._start()
        if self.complete([]):
            raise ConfigError(
                f"{self.name}: of what this vocabulary can write, only the empty text matches it"
            )

    def allowed(self, written: Sequence[int]) -> Bool[Tensor, " V"]:
        """Which tokens may follow ``written``: end-of-text where the text may end, no other special token.

        Raises ``NothingLeftError`` where ``written`` begins nothing that matches.
        """
        self._follow(written)
        return self._allowed

    def complete(self, written: Sequence[int]) -> bool:
        """Whether ``written`` matches and nothing can follow it but the end."""
        self._follow(written)
        return self._may_end and not self._may_go_on

    def _start(self) -> None:
        self._matcher = self._beginning.deep_copy()
        self._followed: list[int] = []
        self._look()

    def _follow(self, written: Sequence[int]) -> None:
        known = len(self._followed)
        if list(written[:known]) != self._followed:
            self._start()
            known = 0
        if len(written) > known:
            followed = list(written)
            if not self._matcher.consume_tokens(followed[known:]):
                problem = _problem(self._matcher)
                self._start()
                raise NothingLeftError(f"{self.name}: the text so far cannot be gone on with: {problem}")
            self._look()
            self._followed = followed

    def _look(self) -> None:
        """Find out what may follow. The library's own end-of-text is one past the vocabulary."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        allowed = np.unpackbits(bits, count=self._tokenizer.vocab_size + 1, bitorder="little").view(np.bool_)
        if self._matcher.is_error():
            raise NothingLeftError(f"{self.name}: {_problem(self._matcher)}")
        self._may_end, self._may_go_on = bool(allowed[-1]), bool(allowed[:-1].any())
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
        raise ConfigError("regex: holds a lone surrogate, which is not a character") from None


def _matcher(tokenizer: Tokenizer, grammar: str) -> "LLMatcher":
    """What follows a text of ``grammar`` from its beginning."""
    from llguidance import LLMatcher, LLParserLimits

    known, matcher = _last_read.get(tokenizer, ("", None))
    if matcher is None or known != grammar:
        limits = LLParserLimits(step_lexer_fuel=MOST_WORK, verbose_errors=False)
        matcher = LLMatcher(_vocabulary(tokenizer), grammar, log_level=0, limits=limits)
        _last_read[tokenizer] = grammar, matcher
    return matcher.deep_copy()


def _vocabulary(tokenizer: Tokenizer) -> "LLTokenizer":
    """The library's form of a vocabulary, kept as long as ``tokenizer`` is; special tokens have no bytes in it."""
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
    """What the library says, in one line, without its own grammar around it."""
    lines = matcher.get_error().partition("\n   1 |")[0].splitlines()
    if not lines or lines[0].startswith("NoExtension"):
        return "nothing that this vocabulary can write matches it"
    if lines[0].startswith("lexer"):
        return "grows too large to be followed; repeat less in it"
    last = lines[0] if lines[-1].startswith("<") else lines[-1]
    around = r"(at \d+\(\d+\): )?(invalid regex .*\(in regex\): |failed to compile JSON schema: )?(error: )?"
    return re.sub(f"^{around}", "", last).partition(". ")[0][:300]
