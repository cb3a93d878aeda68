"""How well an encoder fills in each token of a text, all others of its window seen (Salazar et al. 2020).

This is no perplexity: what follows is known, too, so it cannot be compared with one, nor does it measure bits.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from wholegpt.console import Console
from wholegpt.data import TokenShards
from wholegpt.data.text.loader import document_numbers
from wholegpt.errors import DataError, TokenizerError
from wholegpt.evaluation.perplexity import check_context, check_numbers
from wholegpt.losses import class_negative_log_likelihood
from wholegpt.metrics import bootstrap_ratio, perplexity
from wholegpt.model import Encoder
from wholegpt.runtime import compute_in
from wholegpt.settings.choices import Documents, Dtype
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
    """Scored ones: all but special tokens, which an encoder never learns to find."""
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
    documents: Documents = Documents.joined,
) -> PseudoPerplexity:
    """Each token hidden in turn, in windows of ``context`` tokens (0: τ) that do not overlap: as many passes as tokens.

    Separate ``documents`` do not see each other. Raises ``ConfigError`` for more context than the model has,
    ``DataError`` for a text without tokens, ``TokenizerError`` for a vocabulary without the token that hides.
    """
    check_context(context, model.context_length)
    mask_id = tokenizer.id_of(MASK)
    if mask_id is None:
        raise TokenizerError(f"the tokenizer has no {MASK}, in whose place tokens are hidden")
    special = sorted(tokenizer.special_ids)
    counted = tokens.counts
    scored = len(tokens) - int(sum(counted[token_id] for token_id in special if token_id < len(counted)))
    if not scored:
        raise DataError("the text is empty; there is nothing to score")
    length = min(context or model.context_length, len(tokens))
    starts = range(0, len(tokens), length)
    sums, counts = np.zeros(len(starts)), np.zeros(len(starts))
    with console.progress("evaluating", scored) as progress:
        for number, start in enumerate(starts):
            window = torch.from_numpy(tokens.read(start, min(length, len(tokens) - start)).astype(np.int64))
            numbers = None
            if documents is Documents.separate:
                numbers = torch.from_numpy(document_numbers(window.numpy(), tokenizer.end_of_text_id))
            ordinary = torch.from_numpy(~np.isin(window.numpy(), special)).nonzero()[:, 0]
            for places in ordinary.split(max(1, TOKENS_AT_ONCE // length)):
                seen = window.repeat(len(places), 1)
                rows = torch.arange(len(places))
                seen[rows, places] = mask_id
                with compute_in(dtype, model.device):
                    of_rows = None if numbers is None else numbers.expand_as(seen).to(model.device)
                    hidden = model.hidden_states(seen.to(model.device), documents=of_rows)
                    logits = model.logits_of(hidden[rows, places])
                nats = class_negative_log_likelihood(logits, window[places].to(model.device))
                sums[number] += float(nats.double().sum())
                counts[number] += len(places)
                progress.advance(len(places))
    check_numbers(sums, "windows")
    nats = bootstrap_ratio(sums, counts)
    return PseudoPerplexity(nats.value, perplexity(nats.value), int(counts.sum()), nats.low, nats.high)
