"""What generation gives back: completions, hypotheses of beam search, and what there is of either on Ctrl-C."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TokenChoice:
    """A token that was written, and what the model thought of it and of others, before any setting."""

    token_id: int
    text: str
    """What it adds to the text: a character comes with the token that completes it. End-of-text has its name here."""
    surprisal_bits: float
    """−log₂ p."""
    alternatives: list[tuple[str, float]]
    """The likeliest tokens and their probabilities, the likeliest first."""


@dataclass(frozen=True)
class Completion:
    """What a model wrote."""

    text: str
    token_ids: list[int]
    """The tokens drawn, end-of-text left out."""
    finish_reason: str
    """``length``, ``stop`` (a stop text was written, or all that ``regex`` or ``json_schema`` allows), ``end_of_text``,
    ``time``, ``forbidden`` (the settings allow no further token), ``cancelled``, ``interrupted`` or ``error``."""
    tokens_per_second: float
    """Tokens drawn over wall clock, reading the prompt included."""
    choices: list[TokenChoice]
    """One for each token drawn, end-of-text and those of a stop text included, where ``alternatives`` asks for them."""


@dataclass(frozen=True)
class Hypothesis:
    """A text that beam search has found."""

    text: str
    """Up to the stop text, where one ended it."""
    token_ids: list[int]
    """End-of-text left out."""
    log_probability: float
    """ln p of the tokens, end-of-text included, in nats."""
    score: float
    """``log_probability`` divided by the number of those tokens to the power of the length penalty."""
    finish_reason: str
    """``length``, ``end_of_text``, ``stop`` or ``interrupted``."""


class InterruptedWriting(KeyboardInterrupt):
    """Ctrl-C while texts were written, or searched for."""

    def __init__(self, completions: list[Completion] | list[Hypothesis]) -> None:
        super().__init__("interrupted")
        self.completions = completions
        """What had been written of each."""
