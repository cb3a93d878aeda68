"""Pretraining of an encoder: finding hidden tokens (Devlin et al. 2018, section 3.1)."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from wholegpt.config import Config
from wholegpt.data import PreparedData, make_loader
from wholegpt.data.masking import MaskedLoader, hide_tokens
from wholegpt.losses import IGNORED, class_negative_log_likelihood
from wholegpt.model import Encoder, TokenModel
from wholegpt.pretraining import Pretraining
from wholegpt.runtime import compute_in, mix_seed
from wholegpt.training.objectives import MaskedLanguageModeling
from wholegpt.training.stage import Criterion

TOKENS_AT_ONCE = 8192


@dataclass(frozen=True)
class MaskedScore:
    """How well an encoder finds the hidden tokens of held-out text: always the same ones, 15% of it."""

    nats_per_masked_token: float
    accuracy: float
    """Share of them that it holds for the likeliest."""
    tokens: int
    """How many were hidden."""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


class MaskedPretraining(Pretraining):
    """The hidden tokens of text."""

    criterion = Criterion("nats_per_masked_token", higher_is_better=False, words="validation loss")

    def __init__(self, config: Config, data: PreparedData) -> None:
        """``config`` is decided, and ``data`` its tokens."""
        super().__init__(config, data)
        self.objective = MaskedLanguageModeling()
        self.batches = MaskedLoader(make_loader(data, config), data.tokenizer, config.runtime.seed)

    def evaluate(self, model: TokenModel, device: torch.device, whole: bool) -> MaskedScore:
        """The hidden tokens of the held-out text, or of ``evaluation.tokens`` of it."""
        assert isinstance(model, Encoder)
        text, length = self.data.validation, model.context_length
        starts = np.arange(0, max(1, len(text) - length + 1), length)
        if not whole and self.config.evaluation.tokens:
            count = max(1, self.config.evaluation.tokens // length)
            starts = starts[
                np.unique(np.linspace(0, len(starts) - 1, min(count, len(starts))).round().astype(int))
            ]
        rows, nats, right, hidden = max(1, TOKENS_AT_ONCE // length), 0.0, 0, 0
        for first in range(0, len(starts), rows):
            chunk = [text.read(int(start), min(length, len(text))) for start in starts[first : first + rows]]
            seed = mix_seed(0, int(starts[first]))
            seen, targets = hide_tokens(torch.from_numpy(np.stack(chunk)).long(), self.tokenizer, seed)
            asked = targets != IGNORED
            with torch.inference_mode(), compute_in(self.config.precision.dtype, device):
                logits = model.logits_of(model.hidden_states(seen.to(device))[asked.to(device)])
            expected = targets[asked].to(device)
            nats += float(class_negative_log_likelihood(logits, expected).double().sum())
            right, hidden = right + int((logits.argmax(-1) == expected).sum()), hidden + len(expected)
        return MaskedScore(nats / hidden, right / hidden, hidden)

    def write(self, model: TokenModel, device: torch.device) -> str:
        """Nothing: it does not write."""
        return ""
