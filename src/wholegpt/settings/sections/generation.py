"""Generation: its settings, their limits and checks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from wholegpt.errors import ConfigError
from wholegpt.settings.sections.ranges import at_least, from_zero_to_one, require
from wholegpt.settings.sections.run import check_seed

# The limits of generation (docs/generation.md lists them). They bound memory and the time per token.
MOST_GENERATED = 2**20
"""Largest max_tokens and min_tokens."""
MOST_PROMPT_TOKENS = 2**20
MOST_WAITING = 2**16
"""Requests in the queue of the engine."""
MOST_BEAMS = 256
MOST_LISTED = 100
"""Largest alternatives."""
MOST_TEXTS = 1000
"""Texts in each of stop, banned and forced."""
MOST_LISTED_TOKENS = 10**7
"""Largest alternatives · max_tokens."""
LONGEST_TEXT = 1000
"""Characters of a text in stop, banned or forced."""
MOST_BIASES = 100_000
MOST_NGRAM = 1000
LARGEST_TOP_K = 2**24
MOST_ADDED = 1e6
"""Largest value added to a logit. Larger ones would hide the differences between the others in float32."""
MOST_CHARACTERS = 25_000
"""Characters of a regular expression or schema. The slowest take 0.6 s to parse; the time grows with the square."""


@dataclass(frozen=True)
class GenerationConfig:
    """How text is generated."""

    max_tokens: int = 200
    """Maximum number of tokens to generate."""
    temperature: float = 0.8
    """Divisor of the logits. 0: greedy decoding. 1: the distribution of the model."""
    top_k: int = 0
    """Sample only from the k most likely tokens. 0: no limit."""
    top_p: float = 1.0
    """Nucleus sampling: sample only from the most likely tokens whose probabilities first reach this sum."""
    min_p: float = 0.0
    """Sample only from tokens with at least this share of the probability of the most likely token."""
    repetition_penalty: float = 1.0
    """Penalty of tokens in the prompt or the completion: divides logits above 0, multiplies those below 0."""
    frequency_penalty: float = 0.0
    """Subtracted from the logit of a token for each time it was generated."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of a token if it was generated at all."""
    no_repeat_ngram: int = 0
    """Never repeat an n-gram of this many tokens, those of the prompt included. 0: no limit."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Pairs of a token id and the value to add to its logit."""
    banned: tuple[str, ...] = ()
    """Texts that are never generated, however they are tokenized."""
    forced: tuple[str, ...] = ()
    """Texts that the completion must contain: generated at the latest when max_tokens leaves just enough room."""
    min_tokens: int = 0
    """Minimum number of tokens before end-of-text or a stop text can end the completion."""
    stop: tuple[str, ...] = ()
    """Texts that end the completion; they are not part of it."""
    regex: str = ""
    """Constrained decoding: a regular expression (Rust syntax) that the whole completion matches."""
    json_schema: str = ""
    """Constrained decoding: a JSON schema, as JSON text, that the completion satisfies."""
    max_seconds: float = 0.0
    """Time limit in seconds. 0: no limit."""
    alternatives: int = 0
    """Number of most likely tokens to list with their probabilities at each position."""
    seed: int = 1337
    """Seed of the sampling."""


def check_generation(generation: GenerationConfig) -> None:
    """Raise ``ConfigError``, naming the setting, if the settings of generation are invalid."""
    _check_counts(generation)
    _check_logits(generation)
    at_least("max_seconds", generation.max_seconds, 0)
    for name in ("stop", "banned", "forced"):
        _check_texts(name, getattr(generation, name))
    constraints = [name for name in ("regex", "json_schema") if getattr(generation, name)]
    others = [name for name in ("forced", "stop", "min_tokens") if getattr(generation, name)]
    if constraints and (conflicting := constraints[1:] + others):
        raise ConfigError(
            f"{conflicting[0]} cannot be combined with {constraints[0]}, which alone decides the text and where it "
            "ends; leave one out"
        )


def _check_counts(generation: GenerationConfig) -> None:
    for name, most in (
        ("max_tokens", MOST_GENERATED),
        ("min_tokens", MOST_GENERATED),
        ("top_k", LARGEST_TOP_K),
        ("no_repeat_ngram", MOST_NGRAM),
        ("alternatives", MOST_LISTED),
    ):
        value = getattr(generation, name)
        require(name, value, 0 <= value <= most, f"from 0 to {most:,}")
    check_seed("seed", generation.seed)
    if generation.min_tokens > generation.max_tokens:
        raise ConfigError(
            f"min_tokens is {generation.min_tokens}; expected at most max_tokens, {generation.max_tokens}"
        )
    listed = generation.alternatives * generation.max_tokens
    if listed > MOST_LISTED_TOKENS:
        raise ConfigError(
            f"alternatives times max_tokens is {listed:,}; expected at most {MOST_LISTED_TOKENS:,}; reduce either"
        )
    if len(generation.logit_bias) > MOST_BIASES:
        raise ConfigError(
            f"logit_bias has {len(generation.logit_bias):,} entries; expected at most {MOST_BIASES:,}"
        )


def _check_logits(generation: GenerationConfig) -> None:
    temperature, top_p = generation.temperature, generation.top_p
    require("temperature", temperature, 0 <= temperature < math.inf, "of at least 0, and finite")
    require("top_p", top_p, 0 < top_p <= 1, "above 0 and at most 1")
    from_zero_to_one("min_p", generation.min_p)
    penalty = generation.repetition_penalty
    require("repetition_penalty", penalty, 1e-3 <= penalty <= 1e3, "from 0.001 to 1,000")
    added = [(name, getattr(generation, name)) for name in ("frequency_penalty", "presence_penalty")]
    for name, value in [*added, *(("logit_bias", bias) for _, bias in generation.logit_bias)]:
        require(name, value, abs(value) <= MOST_ADDED, f"from -{MOST_ADDED:g} to {MOST_ADDED:g}")


def _check_texts(name: str, texts: Sequence[str]) -> None:
    if len(texts) > MOST_TEXTS:
        raise ConfigError(f"{name} has {len(texts):,} texts; expected at most {MOST_TEXTS:,}")
    if (longest := max(map(len, texts), default=0)) > LONGEST_TEXT:
        raise ConfigError(
            f"{name} contains a text of {longest:,} characters; expected at most {LONGEST_TEXT:,}"
        )
    if "" in texts:
        raise ConfigError(f"{name} contains an empty text; leave it out")
    if any("\ud800" <= character <= "\udfff" for text in texts for character in text):
        raise ConfigError(f"{name} contains a lone surrogate, which is not a character")
