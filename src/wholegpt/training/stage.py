"""The interface of a stage, one way of training, to the run that trains it."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from wholegpt.checkpoint import ModelMetadata, make_model
from wholegpt.console import QUIET, Console
from wholegpt.model import TokenModel
from wholegpt.settings.schema import Config
from wholegpt.tokenizers import Tokenizer
from wholegpt.training.events import Callback, Callbacks, StepMetrics
from wholegpt.training.loop import BatchSource, train_step
from wholegpt.training.objectives import Objective, with_router_losses
from wholegpt.training.optimizers import make_run_optimizer
from wholegpt.training.state import TrainingState


@dataclass(frozen=True)
class Criterion:
    """The metric of an evaluation by which the best weights are chosen, and by which a run stops early."""

    metric: str
    higher_is_better: bool
    label: str
    """The metric's name in messages."""
    tie: str = ""
    """A second metric, lower is better, that decides between evaluations with the same ``metric``."""

    def better(self, values: Mapping[str, Any], best: Mapping[str, Any]) -> bool:
        """Return whether an evaluation is better than the best before. A metric that is not a number never is."""
        here, there = values[self.metric], best[self.metric]
        if here is None or there is None:
            return there is None and here is not None
        if here == there and self.tie:
            return values[self.tie] < best[self.tie]
        return here > there if self.higher_is_better else here < there


@runtime_checkable
class Score(Protocol):
    """The result of an evaluation."""

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        ...


@dataclass(frozen=True)
class QuickScore:
    """Figures without intervals, for evaluations while training."""

    figures: dict[str, float]
    examples: int
    """Number of held-out examples that they are of."""

    def to_json(self) -> dict[str, Any]:
        """Return the figures, None for one that is not a number, and the number of examples."""
        figures = {name: x if math.isfinite(x) else None for name, x in self.figures.items()}
        return {**figures, "examples": self.examples}


class Stage(ABC):
    """One way of training, opened over the data in a run's folder.

    A subclass sets ``criterion``, and ``batches`` (or implements ``batches_for``), and implements ``evaluate`` and
    ``describe``. The other methods have defaults that fit training by gradients.
    """

    criterion: Criterion
    batches: BatchSource
    """The batch of each step."""
    generates = True
    """Whether samples are generated while training."""

    def __init__(
        self, config: Config, tokenizer: Tokenizer, metadata: ModelMetadata, objective: Objective
    ) -> None:
        """``config`` is resolved. ``metadata`` is written into the run's model folders.

        The router losses of a mixture of experts are added to the ``objective``.
        """
        self.config, self.tokenizer, self.metadata = config, tokenizer, metadata
        self.objective = with_router_losses(objective, config)

    @property
    def loss_name(self) -> str:
        """Return the name of the loss in the log."""
        return self.objective.unit

    def new_model(self) -> TokenModel:
        """Return the model before the first step, for a run that has no checkpoint yet."""
        config = self.config
        return make_model(
            config.model, self.metadata, config.precision.attention, config.training.activation_checkpointing
        )

    def make_optimizer(self, model: TokenModel) -> torch.optim.Optimizer:
        """Return the optimizer of the trainable parameters."""
        return make_run_optimizer(model, self.config)

    def batches_for(self, model: TokenModel) -> BatchSource:
        """Return the batches. A stage whose data depend on the weights reads them from ``model``."""
        return self.batches

    def callbacks(self, model: TokenModel, state: TrainingState) -> Sequence[Callback]:
        """Return callbacks of this stage alone."""
        return ()

    def train_step(
        self,
        model: TokenModel,
        optimizer: torch.optim.Optimizer,
        batches: BatchSource,
        state: TrainingState,
        callbacks: Callbacks,
    ) -> StepMetrics:
        """Do one step of the loop."""
        return train_step(model, optimizer, self.objective, batches, self.config, state, callbacks)

    @abstractmethod
    def evaluate(
        self, model: TokenModel, device: torch.device, whole: bool, console: Console = QUIET
    ) -> Score:
        """Evaluate the model on held-out data: all of them if ``whole``, else a quick estimate while training."""

    @abstractmethod
    def describe(self) -> str:
        """Return a line about the training data and how often they are used."""

    def sample(self, model: TokenModel, device: torch.device) -> str:
        """Return a generated sample."""
        return ""

    def masks(self) -> list[list[tuple[str, bool]]]:
        """Return a few training examples token by token, and whether each has a loss; none where all have."""
        return []

    def results(self, model: TokenModel, console: Console = QUIET) -> dict[str, Score]:
        """Return further results of the trained model, by their names in the JSON output of ``train``."""
        return {}
