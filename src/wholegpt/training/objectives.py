"""Objectives: the loss of a batch and its metrics. A new way of training is a new objective, not a new loop."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from wholegpt.data import Batch
from wholegpt.losses import IGNORED, class_negative_log_likelihood, linear_cross_entropy
from wholegpt.model import Encoder, NeuralModel, expert_load, router_losses
from wholegpt.settings.schema import Config


@runtime_checkable
class Rows(Protocol):
    """A batch of any format: rows that can be taken some at a time."""

    @property
    def token_ids(self) -> Int[Tensor, "B *T"]:
        """The tokens of each row."""
        ...

    def __len__(self) -> int:
        """B."""
        ...

    def rows(self, start: int, end: int) -> "Rows":
        """Rows ``start`` to ``end``: a micro-batch."""
        ...

    def to(self, device: torch.device) -> "Rows":
        """The batch on ``device``."""
        ...


Metrics = Mapping[str, tuple[Tensor | float, float]]
"""Name -> a sum and its count. The log has the quotient of both, each added up over the micro-batches of a step."""


@dataclass(frozen=True)
class Terms:
    """The value of an objective for a batch."""

    total: Float[Tensor, " "]
    """The sum of the terms. The loop minimizes it, divided by the number of terms in the whole step."""
    metrics: Metrics
    """What is logged: the objective's ``unit``, and whatever else it measures."""


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


class WithRouterLosses:
    """An objective plus the losses of a mixture of experts' routers, as means over the objective's terms.

    total = Σ terms + count·(``balance``·Σ balance_loss + ``z``·Σ router_z_loss), the latter two over the layers. The
    load of the experts is logged.
    """

    def __init__(self, objective: Objective, balance: float, z: float) -> None:
        self.objective, self.balance, self.z = objective, balance, z

    @property
    def unit(self) -> str:
        """That of the objective."""
        return self.objective.unit

    def count(self, batch: Any) -> int:
        """That of the objective."""
        return self.objective.count(batch)

    def __call__(self, model: nn.Module, batch: Any) -> Terms:
        """Return the terms of ``batch``, with those of the routers."""
        terms = self.objective(model, batch)
        routed = self.count(batch) * router_losses(model, self.balance, self.z)
        return Terms(terms.total + routed, {**terms.metrics, **expert_load(model)})


def with_router_losses(objective: Objective, config: Config) -> Objective:
    """Return ``objective`` itself, or with the losses of the routers where the model is a mixture of experts."""
    if not config.model.n_experts:
        return objective
    return WithRouterLosses(objective, config.training.balance_loss, config.training.router_z_loss)


class MaskedLanguageModeling:
    """−ln p of each hidden token, in nats; a term is a hidden token (Devlin et al. 2018, section 3.1)."""

    unit = "nats_per_masked_token"

    def count(self, batch: Batch) -> int:
        """Tokens to be found."""
        return int((batch.targets != IGNORED).sum())

    def __call__(self, model: nn.Module, batch: Batch) -> Terms:
        """Return the sum of their nats."""
        assert isinstance(model, Encoder)
        hidden = model.hidden_states(batch.token_ids, documents=batch.documents)
        hidden_ones = batch.targets != IGNORED
        logits = model.logits_of(hidden[hidden_ones])
        nats = class_negative_log_likelihood(logits, batch.targets[hidden_ones]).sum()
        return Terms(nats, {self.unit: (nats.detach(), self.count(batch))})


class LanguageModeling:
    """E8: the negative log-likelihood of each next token, in nats; a term is a token."""

    unit = "nats_per_token"

    def count(self, batch: Batch) -> int:
        """Targets that are scored."""
        return int((batch.targets != IGNORED).sum())

    def __call__(self, model: nn.Module, batch: Batch) -> Terms:
        """Return the sum of the nats of all targets."""
        assert isinstance(model, NeuralModel)
        hidden = model.hidden_states(batch.token_ids, documents=batch.documents)
        nats = linear_cross_entropy(hidden, model.unembedding.weight, batch.targets)
        return Terms(nats, {self.unit: (nats.detach(), self.count(batch))})
