"""Counted models (n-grams): one step that counts the whole training text."""

import time

import torch

from wholegpt.interrupts import interruptible
from wholegpt.model import TokenModel
from wholegpt.model.baselines import NGram
from wholegpt.settings.choices import Architecture, TaskKind
from wholegpt.stages.definition import StageDefinition
from wholegpt.stages.pretraining import Pretraining, next_steps, set_up_text
from wholegpt.training.events import Callbacks, StepMetrics
from wholegpt.training.loop import BatchSource
from wholegpt.training.state import TrainingState


class Counting(Pretraining):
    """Counts of the n-grams of text; they have no gradients and no loss while training."""

    def make_optimizer(self, model: TokenModel) -> torch.optim.Optimizer:
        """Return an optimizer of no parameters."""
        return torch.optim.SGD([{"params": []}])

    def train_step(
        self,
        model: TokenModel,
        optimizer: torch.optim.Optimizer,
        batches: BatchSource,
        state: TrainingState,
        callbacks: Callbacks,
    ) -> StepMetrics:
        """Count the whole text."""
        assert isinstance(model, NGram)
        started, text = time.perf_counter(), self.data.train
        interruptible(lambda: model.count(text.read(0, len(text))))
        return StepMetrics(float("nan"), 0.0, None, len(text), time.perf_counter() - started)

    def describe(self) -> str:
        """Return the order of the n-grams and the sizes of both splits."""
        manifest, order = self.data.manifest, self.config.model.ngram_order
        return (
            f"counting n-grams up to order {order} of {manifest.train.tokens:,} tokens; "
            f"validation: {manifest.validation.tokens:,} ({manifest.split})"
        )


STAGE = StageDefinition(
    name="counting",
    tasks=(TaskKind.pretraining,),
    architectures=(Architecture.ngram,),
    parents=(),
    set_up=set_up_text,
    open=lambda run: Counting(run.config, run.text()),
    next_steps=next_steps,
    extendable=False,
)
