"""A toy stage whose data depends on the weights: a model trained on its own samples."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from wholegpt.data import Batch
from wholegpt.model import TokenModel
from wholegpt.runtime import mix_seed
from wholegpt.stages import pretraining, registry
from wholegpt.stages.definition import RunContents
from wholegpt.stages.pretraining import Pretraining
from wholegpt.training.loop import BatchSource
from wholegpt.training.rollouts import RolloutBatches, RolloutStore

EVERY = 5


class SelfTraining(Pretraining):
    """Next-token prediction on the model's own samples."""

    def batches_for(self, model: TokenModel) -> BatchSource:
        """Return the samples of every fifth step."""
        assert self.run
        return RolloutBatches(model, RolloutStore(self.run), EVERY, self.collect, self.batch_of)

    def collect(self, model: TokenModel, step: int) -> Mapping[str, Tensor]:
        """Return a batch of samples for each of five steps, starting from random tokens."""
        generator = torch.Generator().manual_seed(mix_seed(self.config.runtime.seed, step))
        rows = EVERY * self.config.training.batch_size
        token_ids = torch.randint(model.vocab_size, (rows, 1), generator=generator)
        for _ in range(model.context_length):
            probabilities = model(token_ids)[:, -1].softmax(-1)
            drawn = torch.multinomial(probabilities, 1, generator=generator)
            token_ids = torch.cat((token_ids, drawn), dim=1)
        return {"token_ids": token_ids}

    def batch_of(self, rollout: Mapping[str, Tensor], step: int) -> Batch:
        """Return the samples of one step."""
        size = self.config.training.batch_size
        rows = rollout["token_ids"][step * size : (step + 1) * size]
        return Batch(rows[:, :-1], rows[:, 1:])


def open_stage(run: RunContents) -> SelfTraining:
    """Open the stage over a run."""
    return SelfTraining(run.config, run.text(), None, run.path)


STAGE = replace(pretraining.STAGE, name="self_training", open=open_stage)


def register() -> None:
    """Replace pretraining by training on samples."""
    registry.STAGES = (STAGE, *registry.STAGES)
