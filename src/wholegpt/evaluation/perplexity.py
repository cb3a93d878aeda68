"""Cross-entropy of a model on a text: nats, perplexity (E15), bits per character and byte (E16)."""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float

from wholegpt.console import Console
from wholegpt.data import TokenShards
from wholegpt.errors import ConfigError, DataError, NumericsError
from wholegpt.losses import IGNORED, negative_log_likelihood
from wholegpt.metrics import bits_per_unit, perplexity
from wholegpt.model.interface import CausalLanguageModel
from wholegpt.runtime import compute_in
from wholegpt.settings.choices import Documents, Dtype
from wholegpt.tokenizers import Tokenizer

SCORED_AT_ONCE = 2**22
"""Maximum logits of one batch of several windows: 16 MB in float32."""
TOKENS_AT_ONCE = 8192
"""Maximum tokens in one batch; larger batches exceed a CPU's caches and are slower."""


@dataclass(frozen=True)
class TextScore:
    """A model's cross-entropy on a text, with its denominators."""

    nats_per_token: float
    perplexity: float
    """exp(nats per token)."""
    bits_per_character: float
    bits_per_byte: float
    tokens: int
    """Scored tokens: all but the first, which has no context."""
    characters: int
    """Characters of the scored tokens; end-of-text tokens add none."""
    bytes: int
    """Their length in UTF-8."""

    def to_json(self) -> dict[str, float | int | None]:
        """Return plain values; ``None`` if a value is not finite, which JSON cannot represent."""
        return {name: x if math.isfinite(x) else None for name, x in dataclasses.asdict(self).items()}


@dataclass(frozen=True)
class Window:
    """One forward pass of an evaluation: inputs [start, end), targets [start + 1, end + 1)."""

    start: int
    end: int
    first_scored: int
    """Index of the first input whose target is scored here; earlier ones are context."""


def scoring_windows(n_tokens: int, context_length: int, stride: int) -> Iterator[Window]:
    """Yield windows that score every token after the first exactly once.

    Each window starts ``stride`` after the previous one; the tokens that two windows share are scored by the
    earlier and are context for the later one. With stride τ, windows have τ inputs and share no context. With
    a smaller stride, each token has at least τ − stride tokens of context, and windows have τ tokens, of
    which the last is only predicted: the procedure that transformers documents for models of fixed length.
    """
    scored_to, inputs = 0, context_length if stride == context_length else context_length - 1
    for start in range(0, max(n_tokens - 1, 0), stride):
        end = min(start + inputs, n_tokens - 1)
        yield Window(start, end, scored_to)
        scored_to = end
        if end == n_tokens - 1:
            return


@torch.inference_mode()
def score_tokens(
    model: CausalLanguageModel,
    tokens: TokenShards,
    windows: list[Window],
    device: torch.device,
    dtype: Dtype,
    console: Console,
) -> np.ndarray:
    """Return −ln p of each scored token, in nats, float64, in the order of the windows."""
    tokens_at_once = min(TOKENS_AT_ONCE, SCORED_AT_ONCE // model.vocab_size)
    per_batch = max(1, tokens_at_once // model.context_length)
    pieces: list[np.ndarray] = []
    with console.progress("evaluating", len(windows)) as progress:
        for first in range(0, len(windows), per_batch):
            chunk = windows[first : first + per_batch]
            length = max(window.end - window.start for window in chunk)
            inputs = torch.zeros(len(chunk), length, dtype=torch.long)
            targets = torch.full((len(chunk), length), IGNORED, dtype=torch.long)
            for row, window in enumerate(chunk):
                ids = torch.from_numpy(tokens.read(window.start, window.end - window.start + 1))
                skipped = window.first_scored - window.start
                inputs[row, : len(ids) - 1] = ids[:-1]
                targets[row, skipped : len(ids) - 1] = ids[1 + skipped :]
            with compute_in(dtype, device):
                logits = model(inputs.to(device))
            nats = negative_log_likelihood(logits, targets.to(device)).cpu().double()
            pieces.append(nats[targets != IGNORED].numpy())
            progress.advance(len(chunk))
    return np.concatenate(pieces)


def check_not_nan(values: np.ndarray, what: str) -> None:
    """Raise ``NumericsError`` if some of the model's ``values`` for ``what`` are NaN."""
    if broken := int(np.isnan(values).sum()):
        raise NumericsError(
            f"the model produces NaN for {broken:,} of {values.size:,} {what}; its weights are damaged or "
            "training has diverged"
        )


def evaluate_tokens(
    model: CausalLanguageModel,
    tokens: TokenShards,
    tokenizer: Tokenizer,
    device: torch.device,
    dtype: Dtype,
    console: Console,
    stride: int = 0,
    sample: int = 0,
    documents: Documents = Documents.joined,
) -> TextScore:
    """Score ``tokens``, all after the first, or about ``sample`` of them in evenly spaced windows.

    ``stride`` is that of ``scoring_windows``; 0 means τ. Separate ``documents`` are not context for each
    other: windows restart at each document, with the end-of-text token before it. Raises ``DataError`` for
    fewer than two tokens, ``ConfigError`` for a stride beyond τ.
    """
    windows = windows_over(tokens, model.context_length, stride, tokenizer, documents)
    if sample and sample < len(tokens):
        chosen = np.linspace(0, len(windows) - 1, max(1, round(len(windows) * sample / len(tokens))))
        windows = [windows[int(i)] for i in np.unique(chosen.round())]
    nats = score_tokens(model, tokens, windows, device, dtype, console)
    sizes = np.zeros(2, dtype=np.int64)
    for window in windows:
        scored = tokens.read(window.first_scored, window.end - window.first_scored + 1)
        sizes += tokenizer.sizes_after(scored).sum(axis=0)
    return text_score(nats, *(round(size) for size in sizes * text_scale(tokens, tokenizer)))


def check_context(context: int, most: int) -> None:
    """Raise ``ConfigError`` for windows that exceed the model's context."""
    if not 0 <= context <= most:
        raise ConfigError(f"context is {context}; expected 1 to {most}, or 0 for the default")


def text_scale(tokens: TokenShards, tokenizer: Tokenizer) -> Float[np.ndarray, "2"]:
    """Return bytes and characters of the original text per byte and character of its tokens; 1 for lossless
    tokenizers.

    The original text of a single token is unknown if the tokenizer changes text, so each token gets its
    share.
    """
    if tokenizer.keeps_text or tokens.text is None:
        return np.ones(2)
    spelled = np.maximum(tokenizer.sizes_of_counts(tokens.counts), 1)
    return np.array([tokens.text.bytes, tokens.text.characters]) / spelled


def windows_over(
    tokens: TokenShards, context_length: int, stride: int, tokenizer: Tokenizer, documents: Documents
) -> list[Window]:
    """Return ``scoring_windows`` of a text or of each of its documents; a stride of 0 means τ.

    Raises like ``evaluate_tokens``.
    """
    if not 0 <= stride <= context_length:
        raise ConfigError(
            f"stride is {stride}; expected 1 to {context_length}, the model's context length, or 0 for the "
            "default"
        )
    if len(tokens) < 2:
        raise DataError(
            f"the text has {len(tokens)} token(s); at least 2 are needed, one to predict the other from"
        )
    boundaries = [0, len(tokens) - 1]
    if documents is Documents.separate:
        boundaries[1:1] = [
            position
            for position in tokens.positions_of(tokenizer.end_of_text_id)
            if 0 < position < boundaries[-1]
        ]
    return [
        Window(start + window.start, start + window.end, start + window.first_scored)
        for start, end in pairwise(boundaries)
        for window in scoring_windows(end - start + 1, context_length, stride or context_length)
    ]


def text_score(nats: np.ndarray, n_bytes: int, n_characters: int) -> TextScore:
    """Return the nats of tokens in every unit, given the bytes and characters of these tokens."""
    total = float(nats.sum())
    return TextScore(
        nats_per_token=total / len(nats),
        perplexity=perplexity(total / len(nats)),
        bits_per_character=bits_per_unit(total, n_characters),
        bits_per_byte=bits_per_unit(total, n_bytes),
        tokens=len(nats),
        characters=n_characters,
        bytes=n_bytes,
    )
