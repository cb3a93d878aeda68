"""Masked language modeling of an encoder (Devlin et al. 2018, section 3.1). Shapes: B windows."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float

from wholegpt.console import QUIET, Console
from wholegpt.data import WindowLoader
from wholegpt.data.text.loader import document_numbers
from wholegpt.data.text.masking import MaskedLoader, mask_tokens
from wholegpt.evaluation import TaskScore
from wholegpt.losses import IGNORED, class_negative_log_likelihood
from wholegpt.metrics import bootstrap_ratio, clustered_proportion
from wholegpt.model import Encoder, TokenModel
from wholegpt.runtime import compute_in, mix_seed
from wholegpt.settings.choices import Architecture, Documents, TaskKind
from wholegpt.settings.schema import Config
from wholegpt.stages.definition import NewRun, NextStep, SetupRequest, StageDefinition
from wholegpt.stages.pretraining import Pretraining, set_up_text
from wholegpt.tokenizers import MASK
from wholegpt.training.loop import BatchSource
from wholegpt.training.objectives import MaskedLanguageModeling, Objective
from wholegpt.training.stage import Criterion, QuickScore

TOKENS_AT_ONCE = 8192


class MaskedPretraining(Pretraining):
    """Prediction of the masked tokens of text."""

    generates = False
    criterion = Criterion("nats_per_masked_token", higher_is_better=False, label="validation loss")

    def make_objective(self) -> Objective:
        """Return the negative log-likelihood of the masked tokens."""
        return MaskedLanguageModeling()

    def make_batches(self, loader: WindowLoader) -> BatchSource:
        """Return the windows of ``loader`` with masked tokens."""
        return MaskedLoader(loader, self.tokenizer, self.config.runtime.seed)

    def evaluate(
        self, model: TokenModel, device: torch.device, whole: bool, console: Console = QUIET
    ) -> TaskScore | QuickScore:
        """Return loss and accuracy on 15% of the tokens of the held-out text, always the same ones, in whole windows.

        All windows are used, with confidence intervals, or ``evaluation.tokens`` tokens in at least one window.
        """
        assert isinstance(model, Encoder)
        text, length = self.data.validation, min(model.context_length, len(self.data.validation))
        starts = np.arange(0, len(text) - length + 1, length)
        sample = 0 if whole else self.config.evaluation.tokens
        wanted = max(1, sample // length) if sample else len(starts)
        if wanted < len(starts):
            starts = starts[np.unique(np.linspace(0, len(starts) - 1, wanted).round().astype(int))]
        batches = console.track("evaluating", [*_batches(starts, length)])
        counts = np.concatenate(
            [self._evaluate_windows(model, starts[rows], length, device) for rows in batches]
        )
        masked, right, nats = counts.T
        if not whole:
            figures = (float(part.sum() / masked.sum()) for part in (nats, right))
            return QuickScore(
                dict(zip(("nats_per_masked_token", "accuracy"), figures, strict=True)), int(masked.sum())
            )
        metrics = {
            "nats_per_masked_token": bootstrap_ratio(nats, masked),
            "accuracy": clustered_proportion(right, masked),
        }
        return TaskScore("masked tokens", int(masked.sum()), 0, metrics, {}, 0, [])

    def _evaluate_windows(
        self, model: Encoder, starts: np.ndarray, length: int, device: torch.device
    ) -> Float[np.ndarray, "B 3"]:
        """Return for each window the numbers of masked tokens and of correct predictions, and the sum of the nats."""
        windows = np.stack([self.data.validation.read(int(start), length) for start in starts])
        seen, targets = mask_tokens(
            torch.from_numpy(windows).long(), self.tokenizer, mix_seed(0, int(starts[0]))
        )
        asked, documents = targets != IGNORED, None
        if self.config.windows.documents is Documents.separate:
            numbers = document_numbers(windows, self.tokenizer.end_of_text_id)
            documents = torch.from_numpy(numbers).to(device)
        with torch.inference_mode(), compute_in(self.config.precision.dtype, device):
            logits = model.masked_token_logits(seen.to(device), asked.to(device), documents).cpu()
        rows, expected = asked.nonzero()[:, 0].numpy(), targets[asked]
        nats = class_negative_log_likelihood(logits, expected).double().numpy()
        right = (logits.argmax(-1) == expected).numpy()
        parts = (np.ones(len(rows)), right, nats)
        return np.stack([np.bincount(rows, weights=part, minlength=len(starts)) for part in parts], axis=1)

    def sample(self, model: TokenModel, device: torch.device) -> str:
        """Return nothing: an encoder does not generate text."""
        return ""


def _batches(starts: np.ndarray, length: int) -> Iterator[slice]:
    """Yield the windows that are evaluated at once."""
    rows = max(1, TOKENS_AT_ONCE // length)
    return (slice(first, first + rows) for first in range(0, len(starts), rows))


def set_up(request: SetupRequest) -> NewRun:
    """Set up pretraining of an encoder, whose tokenizer has a mask token."""
    config, names = request.config, request.config.tokenizer.special_tokens
    if MASK not in names:
        config = replace(config, tokenizer=replace(config.tokenizer, special_tokens=(*names, MASK)))
    return set_up_text(replace(request, config=config))


def next_steps(_: Config) -> list[NextStep]:
    """Return the uses of a pretrained encoder."""
    options = "--task classification --finetuning.language-modeling 0"
    command = f"{{program}} finetune {{run}} {options} --data YOUR.csv"
    return [NextStep(command, "train a classifier from it")]


STAGE = StageDefinition(
    name="masked",
    tasks=(TaskKind.pretraining,),
    architectures=(Architecture.encoder,),
    parents=(),
    set_up=set_up,
    open=lambda run: MaskedPretraining(run.config, run.text()),
    next_steps=next_steps,
)
