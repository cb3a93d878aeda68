"""Rewards that trained models give."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from wholegpt.checkpoint import ModelFolder, listed, load_model, model_folder
from wholegpt.console import QUIET, Console
from wholegpt.data.chat.template import Conversation
from wholegpt.data.examples.tasks import Task, parts_of
from wholegpt.errors import ConfigError
from wholegpt.model import TaskModel
from wholegpt.model.lora import merge, remove_lora
from wholegpt.settings.choices import Dtype, TaskKind
from wholegpt.stages.alignment.reward_model import RewardModel
from wholegpt.stages.alignment.rewards.interface import Reward, Sample
from wholegpt.stages.prediction import predict


def load_model_of(run: str, console: Console) -> ModelFolder:
    """Load the best weights of a run, or a model folder; LoRA is merged.

    Raises ``CheckpointError`` if there is no model.
    """
    loaded = load_model(model_folder(Path(run), "best", console))
    if not loaded.metadata.lora:
        return loaded
    merge(loaded.model)
    remove_lora(loaded.model)
    return replace(loaded, metadata=replace(loaded.metadata, lora=None, new_tokens=0))


class Classifier(Reward):
    """The probability of a label for the completion; 0 for an empty one."""

    def __init__(self, loaded: ModelFolder, label: str, device: torch.device, dtype: Dtype) -> None:
        """``dtype`` is that of the matrix products.

        Raises ``ConfigError`` if the model does not classify single texts, or has no such label.
        """
        self.name = f"classifier_{label}"
        self.task, self.label, self.dtype = _classification(loaded.metadata.task, label), label, dtype
        self.tokenizer = loaded.tokenizer
        model = loaded.model.to(device).eval().requires_grad_(False)
        assert isinstance(model, TaskModel)
        self.model = model

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """Return the probability of the label for each sample."""
        texts = [one.completion for one in samples if one.completion.strip()]
        parts = [parts_of(self.task.kind, text) for text in texts]
        predictions = iter(
            predict(self.model, self.tokenizer, self.task, parts, self.dtype, QUIET) if parts else ()
        )
        return [
            next(predictions).probabilities[self.label] if one.completion.strip() else 0.0 for one in samples
        ]


def _classification(task: Task | None, label: str) -> Task:
    if task is None or task.kind is not TaskKind.classification:
        found = f"predicts {task.kind}" if task else "has no task head"
        raise ConfigError(
            f"the model {found}; expected a classifier of texts, made by `finetune --task classification`"
        )
    if label not in task.labels:
        raise ConfigError(f"the model has no label '{label}'; its labels are {listed(list(task.labels))}")
    return task


class ModelReward(Reward):
    """The reward by a reward model (``stages.alignment.reward_model``)."""

    name = "model"

    def __init__(self, loaded: ModelFolder, device: torch.device, dtype: Dtype) -> None:
        """``dtype`` is that of the matrix products. Raises ``ConfigError`` if the model is not a reward model."""
        loaded.model.to(device).eval().requires_grad_(False)
        self.model = RewardModel.of(loaded, dtype=dtype)

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """Return the reward of each sample. Raises ``DataError`` for a prompt that fills the model's context."""
        return self.model.score([(one.prompt, one.completion) for one in samples])

    def check_prompts(self, prompts: Sequence[Conversation]) -> None:
        """Raise ``DataError`` if a prompt leaves no room for an answer in the reward model's context."""
        self.model.check_prompts(prompts)
