"""Results of generation: completions, hypotheses of beam search, and partial results on Ctrl-C."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TokenChoice:
    """A generated token and the most likely alternatives, with their probabilities before any logits processor."""

    token_id: int
    text: str
    """The text that the token adds: the last token of a character adds it. For end-of-text, its name."""
    surprisal_bits: float
    """−log₂ p."""
    alternatives: list[tuple[str, float]]
    """The most likely tokens and their probabilities, most likely first."""


@dataclass(frozen=True)
class Completion:
    """A generated text."""

    text: str
    token_ids: list[int]
    """The tokens drawn, without end-of-text."""
    finish_reason: str
    """``length``, ``stop`` (a stop text was generated, or ``regex`` or ``json_schema`` allows nothing more),
    ``end_of_text``, ``time``, ``forbidden`` (the settings allow no further token), ``cancelled``, ``interrupted`` or
    ``error``.
    """
    tokens_per_second: float
    """Tokens drawn per second of wall clock, prefill included."""
    choices: list[TokenChoice]
    """One per token drawn, including end-of-text and tokens of a stop text; empty unless ``alternatives`` is
    set.
    """

    def __repr__(self) -> str:
        return (
            f"Completion({self.text!r}, {len(self.token_ids)} tokens, finish_reason={self.finish_reason!r})"
        )


@dataclass(frozen=True)
class Hypothesis:
    """A text found by beam search."""

    text: str
    """The text up to the stop text, if one ended it."""
    token_ids: list[int]
    """The tokens, without end-of-text."""
    log_probability: float
    """ln p of the tokens, end-of-text included, in nats."""
    score: float
    """``log_probability`` divided by the number of those tokens to the power of the length penalty."""
    finish_reason: str
    """``length``, ``end_of_text``, ``stop`` or ``interrupted``."""


class InterruptedGeneration(KeyboardInterrupt):
    """Ctrl-C during generation or beam search."""

    def __init__(self, completions: list[Completion] | list[Hypothesis]) -> None:
        super().__init__("interrupted")
        self.completions = completions
        """The partial result of each text."""
