"""Evaluate a model on a whole text: cross-entropy in every unit, with intervals."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from wholegpt.console import Console
from wholegpt.data import TokenShards
from wholegpt.evaluation.perplexity import (
    TextScore,
    check_context,
    check_not_nan,
    score_tokens,
    text_scale,
    text_score,
    windows_over,
)
from wholegpt.metrics import Estimate, bootstrap_ratio, nats_to_bits, perplexity
from wholegpt.model.interface import CausalLanguageModel
from wholegpt.settings.choices import Documents, Dtype
from wholegpt.tokenizers import Tokenizer

PIECES = 100
"""Number of pieces of equal bytes that the text is split into for the bootstrap."""


@dataclass(frozen=True)
class TextEvaluation(TextScore):
    """A model's cross-entropy on a whole text."""

    bits_per_token: float
    words: int
    """Words separated by white space; in a published form of text, line ends count too."""
    bits_per_word: float
    perplexity_per_word: float
    """exp(nats per word)."""
    intervals: dict[str, Estimate] = field(repr=False)
    """Interval of each metric: a bootstrap over equal pieces of the text."""
    piece_nats: np.ndarray = field(repr=False)
    """Nats of each piece of the text, shape (P,)."""
    piece_bytes: np.ndarray = field(repr=False)
    """Bytes of each piece, shape (P,)."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values; ``None`` if a value is not finite. ``intervals`` has the ends of each."""
        names = [
            *TextScore.__dataclass_fields__,
            "bits_per_token",
            "words",
            "bits_per_word",
            "perplexity_per_word",
        ]
        values = {name: getattr(self, name) for name in names}
        figures = {name: value if math.isfinite(value) else None for name, value in values.items()}
        ends = {name: one.to_json() for name, one in self.intervals.items()}
        return {**figures, "intervals": {name: [one["low"], one["high"]] for name, one in ends.items()}}


def evaluate_text(
    model: CausalLanguageModel,
    tokens: TokenShards,
    tokenizer: Tokenizer,
    device: torch.device,
    dtype: Dtype,
    console: Console,
    stride: int = 0,
    words: int | None = None,
    context: int = 0,
    documents: Documents = Documents.joined,
) -> TextEvaluation:
    """Score all ``tokens`` after the first, like ``evaluate_tokens``, in windows of ``context`` tokens (0:
    τ).

    ``words`` is the number of words of the original text, if the tokens spell a different text. The intervals are a
    bootstrap over 100 equal pieces of the text: they describe the variation between texts of this kind, not between
    training runs.
    """
    check_context(context, model.context_length)
    windows = windows_over(tokens, context or model.context_length, stride, tokenizer, documents)
    nats = score_tokens(model, tokens, windows, device, dtype, console)
    check_not_nan(nats, "tokens")
    token_ids = tokens.read(0, len(tokens))
    sizes = tokenizer.sizes_after(token_ids) * text_scale(tokens, tokenizer)
    words = _words(token_ids, tokenizer) if words is None else words
    score = text_score(nats, *(round(total) for total in sizes.sum(axis=0)))
    nats_per_word = float(nats.sum()) / words if words else math.nan
    middle = sizes[:, 0].cumsum() - sizes[:, 0] / 2  # in bytes
    piece = np.minimum(middle * PIECES / max(1, score.bytes), PIECES - 1).astype(int)
    piece_nats, piece_tokens, piece_bytes, piece_characters = (
        np.bincount(piece, weights, minlength=PIECES) for weights in (nats, None, *sizes.T)
    )
    per_token, per_byte, per_character = (
        bootstrap_ratio(piece_nats, some) for some in (piece_tokens, piece_bytes, piece_characters)
    )
    per_word = per_byte.mapped(
        lambda nats_per_byte: nats_per_byte * score.bytes / words if words else math.nan
    )
    return TextEvaluation(
        **{name: getattr(score, name) for name in TextScore.__dataclass_fields__},
        bits_per_token=nats_to_bits(score.nats_per_token),
        words=words,
        bits_per_word=nats_to_bits(nats_per_word),
        perplexity_per_word=perplexity(nats_per_word),
        intervals={
            "nats_per_token": per_token,
            "perplexity": per_token.mapped(perplexity),
            "bits_per_token": per_token.mapped(nats_to_bits),
            "bits_per_character": per_character.mapped(nats_to_bits),
            "bits_per_byte": per_byte.mapped(nats_to_bits),
            "bits_per_word": per_word.mapped(nats_to_bits),
            "perplexity_per_word": per_word.mapped(perplexity),
        },
        piece_nats=piece_nats,
        piece_bytes=piece_bytes,
    )


def _words(token_ids: np.ndarray, tokenizer: Tokenizer) -> int:
    """Count the words, which end at white space and at the end of a document."""
    if not tokenizer.has_end_of_text:
        return len(tokenizer.decode(token_ids.tolist()).split())
    ends = token_ids == tokenizer.end_of_text_id
    documents = np.split(token_ids[~ends], np.flatnonzero(ends) - np.arange(ends.sum()))
    return sum(len(tokenizer.decode(document.tolist()).split()) for document in documents)
