"""Objectives: the loss of a batch and its metrics. A new way of training is a new objective, not a new loop."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from wholegpt.data import Batch
from wholegpt.losses import IGNORED, class_negative_log_likelihood
from wholegpt.model import Encoder, NeuralModel, expert_load, router_losses
from wholegpt.settings.schema import Config


@runtime_checkable
class Rows(Protocol):
    """A batch of any format, which can be split by rows."""

    @property
    def token_ids(self) -> Int[Tensor, "B *T"]:
        """Return the tokens of each row."""
        ...

    def __len__(self) -> int:
        """Return B."""
        ...

    def rows(self, start: int, end: int) -> "Rows":
        """Return the micro-batch of rows ``start`` to ``end`` − 1."""
        ...

    def to(self, device: torch.device) -> "Rows":
        """Return the batch on ``device``."""
        ...


Metrics = Mapping[str, tuple[Tensor | float, float]]
"""Name -> (sum, count). The log shows the quotient, after both are added up over the micro-batches of a step."""


@dataclass(frozen=True)
class Terms:
    """The value of an objective for a batch."""

    total: Float[Tensor, " "]
    """The sum of the terms. The loop minimizes it, divided by the number of terms in the whole step."""
    metrics: Metrics
    """The logged metrics: the objective's ``unit`` and others."""


@runtime_checkable
class Objective(Protocol):
    """A mean over the terms of a whole optimizer step, computed micro-batch by micro-batch.

    Batches have the format of the loader beside it.
    """

    @property
    def unit(self) -> str:
        """The metric that is the loss of a step."""
        ...

    def count(self, batch: Any) -> int:
        """Return the number of terms in ``batch``; 0 is allowed.

        The loop asks for that of a whole step before its first micro-batch, since every gradient is divided by it.
        """
        ...

    def __call__(self, model: nn.Module, batch: Any) -> Terms:
        """Return the terms of ``batch``."""
        ...


class ExtendedObjective(ABC):
    """An objective with further terms or metrics: those of another objective, and its own."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective

    @property
    def unit(self) -> str:
        """Return that of the objective."""
        return self.objective.unit

    def count(self, batch: Any) -> int:
        """Return that of the objective."""
        return self.objective.count(batch)

    @abstractmethod
    def __call__(self, model: nn.Module, batch: Any) -> Terms:
        """Return the terms of ``batch``."""


class WithRouterLosses(ExtendedObjective):
    """An objective plus the losses of a mixture of experts' routers, as means over the objective's terms.

    total = Σ terms + count·(``balance``·Σ balance_loss + ``z``·Σ router_z_loss), the latter two over the layers. The
    load of the experts is logged.
    """

    def __init__(self, objective: Objective, balance: float, z: float) -> None:
        super().__init__(objective)
        self.balance, self.z = balance, z

    def __call__(self, model: nn.Module, batch: Any) -> Terms:
        """Return the terms of ``batch``, with those of the routers."""
        terms = self.objective(model, batch)
        routed = self.count(batch) * router_losses(model, self.balance, self.z)
        return Terms(terms.total + routed, {**terms.metrics, **expert_load(model)})


def with_router_losses(objective: Objective, config: Config) -> Objective:
    """Return ``objective`` itself, or with the router losses if the model is a mixture of experts."""
    if not config.model.n_experts:
        return objective
    return WithRouterLosses(objective, config.training.balance_loss, config.training.router_z_loss)


class MaskedLanguageModeling:
    """The negative log-likelihood of masked tokens in nats; a term is one token (Devlin et al. 2018, section 3.1)."""

    unit = "nats_per_masked_token"

    def count(self, batch: Batch) -> int:
        """Return the number of masked tokens."""
        return int((batch.targets != IGNORED).sum())

    def __call__(self, model: nn.Module, batch: Batch) -> Terms:
        """Return the sum of the nats of all masked tokens."""
        assert isinstance(model, Encoder)
        masked = batch.targets != IGNORED
        logits = model.masked_token_logits(batch.token_ids, masked, batch.documents)
        nats = class_negative_log_likelihood(logits, batch.targets[masked]).sum()
        return Terms(nats, {self.unit: (nats.detach(), self.count(batch))})


class LanguageModeling:
    """E8: the negative log-likelihood of each next token, in nats; a term is a token."""

    unit = "nats_per_token"

    def count(self, batch: Batch) -> int:
        """Return the number of scored targets."""
        return int((batch.targets != IGNORED).sum())

    def __call__(self, model: nn.Module, batch: Batch) -> Terms:
        """Return the sum of the nats of all targets."""
        assert isinstance(model, NeuralModel)
        nats = model.next_token_nats(batch.token_ids, batch.targets, batch.documents)
        return Terms(nats, {self.unit: (nats.detach(), self.count(batch))})
