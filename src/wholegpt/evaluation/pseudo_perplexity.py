"""Pseudo-perplexity: how well an encoder predicts each masked token given all others (Salazar et al. 2020).

It is not a perplexity: later tokens are visible too, so it cannot be compared with one and does not measure
bits.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from wholegpt.console import Console
from wholegpt.data import TokenShards
from wholegpt.data.text.loader import document_numbers
from wholegpt.errors import DataError, TokenizerError
from wholegpt.evaluation.perplexity import check_context, check_not_nan
from wholegpt.losses import class_negative_log_likelihood
from wholegpt.metrics import bootstrap_ratio, perplexity
from wholegpt.model import Encoder
from wholegpt.runtime import compute_in
from wholegpt.settings.choices import Documents, Dtype
from wholegpt.tokenizers import MASK, Tokenizer

TOKENS_AT_ONCE = 8192


@dataclass(frozen=True)
class PseudoPerplexity:
    """The pseudo-perplexity of a text, with its 95% interval over windows."""

    pseudo_nats_per_token: float
    """Mean −ln p(token | all others of its window)."""
    pseudo_perplexity: float
    """exp of the mean nats."""
    tokens: int
    """Scored tokens: all but special tokens, which are never masked in training."""
    low: float
    """Lower end of the interval of the nats; ``high`` is the upper end."""
    high: float

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
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
    """Mask each token in turn, in windows of ``context`` tokens (0: τ) without overlap; one forward pass per
    token.

    Separate ``documents`` do not see each other. Raises ``ConfigError`` for a context longer than the
    model's, ``DataError`` for a text without tokens, ``TokenizerError`` for a vocabulary without a mask
    token.
    """
    check_context(context, model.context_length)
    mask_id = tokenizer.id_of(MASK)
    if mask_id is None:
        raise TokenizerError(f"the tokenizer has no {MASK} token, which pseudo-perplexity needs")
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
            document_ids = None
            if documents is Documents.separate:
                document_ids = torch.from_numpy(document_numbers(window.numpy(), tokenizer.end_of_text_id))
            ordinary = torch.from_numpy(~np.isin(window.numpy(), special)).nonzero()[:, 0]
            for positions in ordinary.split(max(1, TOKENS_AT_ONCE // length)):
                seen = window.repeat(len(positions), 1)
                rows = torch.arange(len(positions))
                seen[rows, positions] = mask_id
                with compute_in(dtype, model.device):
                    of_rows = None if document_ids is None else document_ids.expand_as(seen).to(model.device)
                    hidden = model.hidden_states(seen.to(model.device), documents=of_rows)
                    logits = model.logits_of(hidden[rows, positions])
                nats = class_negative_log_likelihood(logits, window[positions].to(model.device))
                sums[number] += float(nats.double().sum())
                counts[number] += len(positions)
                progress.advance(len(positions))
    check_not_nan(sums, "windows")
    nats = bootstrap_ratio(sums, counts)
    return PseudoPerplexity(nats.value, perplexity(nats.value), int(counts.sum()), nats.low, nats.high)
