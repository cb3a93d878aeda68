"""What differs between the ways of training: pretraining, tasks, conversations."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from wholegpt.checkpoint import ModelMetadata
from wholegpt.model import TokenModel
from wholegpt.settings.schema import Config
from wholegpt.tokenizers import Tokenizer
from wholegpt.training.loop import BatchSource
from wholegpt.training.objectives import Objective


@dataclass(frozen=True)
class Criterion:
    """Which figure of an evaluation says which weights are best, and what stops a run early."""

    figure: str
    higher_is_better: bool
    words: str
    """For people."""
    tie: str = ""
    """Of evaluations alike in ``figure`` that is better which is lower in this one."""

    def better(self, values: Mapping[str, Any], best: Mapping[str, Any]) -> bool:
        """Whether an evaluation is better than the best before; what is not a number never is."""
        here, there = values[self.figure], best[self.figure]
        if here is None or there is None:
            return there is None and here is not None
        if here == there and self.tie:
            return values[self.tie] < best[self.tie]
        return here > there if self.higher_is_better else here < there


@runtime_checkable
class Score(Protocol):
    """How good a model is."""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        ...


@dataclass(frozen=True)
class QuickScore:
    """Figures without intervals, while training."""

    figures: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """As plain values; ``None`` for what is not a number."""
        return {name: x if math.isfinite(x) else None for name, x in self.figures.items()}


@dataclass(frozen=True)
class Begun:
    """What a run that begins from another model is made of."""

    config: Config
    """With the architecture and the number of steps."""
    model: TokenModel
    tokenizer: Tokenizer
    metadata: ModelMetadata
    source: dict[str, Any]
    """What ``lineage.json`` says of the data."""


@runtime_checkable
class Stage(Protocol):
    """One way of training, over what a run's folder holds."""

    @property
    def tokenizer(self) -> Tokenizer:
        """That of the model."""
        ...

    @property
    def metadata(self) -> ModelMetadata:
        """What the model folders of the run say."""
        ...

    @property
    def objective(self) -> Objective:
        """What is minimised."""
        ...

    @property
    def batches(self) -> BatchSource:
        """What it is minimised on."""
        ...

    @property
    def criterion(self) -> Criterion:
        """What the best weights are best in."""
        ...

    def evaluate(self, model: TokenModel, device: torch.device, whole: bool) -> Score:
        """How good the model is on the held-out data: a quick look while training, or the ``whole`` of it."""
        ...

    def write(self, model: TokenModel, device: torch.device) -> str:
        """A sample of what the model writes; nothing where it is not made to write."""
        ...

    def masks(self) -> list[list[tuple[str, bool]]]:
        """A few examples token by token, and whether each is learned; none where all are."""
        ...

    def describe(self) -> str:
        """What is trained on, in a line for people."""
        ...
