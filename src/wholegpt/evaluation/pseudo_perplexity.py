"""How well an encoder fills in each token of a text, all others of its window seen (Salazar et al. 2020).

This is no perplexity: what follows is known, too, so it cannot be compared with one, nor does it measure bits.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from wholegpt.choices import Dtype
from wholegpt.console import Console
from wholegpt.data import TokenShards
from wholegpt.errors import DataError, TokenizerError
from wholegpt.losses import class_negative_log_likelihood
from wholegpt.metrics import bootstrap_ratio, perplexity
from wholegpt.model import Encoder
from wholegpt.runtime import compute_in
from wholegpt.tokenizers import MASK, Tokenizer

TOKENS_AT_ONCE = 8192


@dataclass(frozen=True)
class PseudoPerplexity:
    """Of a text, with its 95% interval over windows."""

    pseudo_nats_per_token: float
    """−ln p(token | all others of its window), a mean."""
    pseudo_perplexity: float
    """exp of it."""
    tokens: int
    low: float
    """Of the nats."""
    high: float

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        values = asdict(self)
        interval = [values.pop("low"), values.pop("high")]
        return {**values, "intervals": {"pseudo_nats_per_token": interval}}


@torch.inference_mode()
def pseudo_perplexity(
    model: Encoder,
    tokens: TokenShards,
    tokenizer: Tokenizer,
    dtype: Dtype,
    console: Console,
    context: int = 0,
) -> PseudoPerplexity:
    """Each token hidden in turn, in windows of ``context`` tokens (0: τ) that do not overlap: as many passes as tokens.

    Raises ``DataError`` for an empty text, ``TokenizerError`` for a vocabulary without the token that hides.
    """
    mask_id = tokenizer.id_of(MASK)
    if mask_id is None:
        raise TokenizerError(f"the tokenizer has no {MASK}, in whose place tokens are hidden")
    if not len(tokens):
        raise DataError("the text is empty; there is nothing to score")
    length = min(context or model.context_length, model.context_length, len(tokens))
    starts = range(0, len(tokens), length)
    sums, counts = np.zeros(len(starts)), np.zeros(len(starts))
    with console.progress("evaluating", len(tokens)) as progress:
        for number, start in enumerate(starts):
            window = torch.from_numpy(tokens.read(start, min(length, len(tokens) - start)).astype(np.int64))
            for places in torch.arange(len(window)).split(max(1, TOKENS_AT_ONCE // length)):
                seen = window.repeat(len(places), 1)
                rows = torch.arange(len(places))
                seen[rows, places] = mask_id
                with compute_in(dtype, model.device):
                    hidden = model.hidden_states(seen.to(model.device))[rows, places]
                    logits = model.logits_of(hidden)
                nats = class_negative_log_likelihood(logits, window[places].to(model.device))
                sums[number] += float(nats.double().sum())
                counts[number] += len(places)
                progress.advance(len(places))
    nats = bootstrap_ratio(sums, counts)
    return PseudoPerplexity(nats.value, perplexity(nats.value), int(counts.sum()), nats.low, nats.high)
