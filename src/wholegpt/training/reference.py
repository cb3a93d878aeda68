"""The frozen reference of a trained model, and the KL divergence between them.

Shapes: B batch, T positions, N scored positions, D width, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from wholegpt.losses import IGNORED, kl_divergence
from wholegpt.model import NeuralModel
from wholegpt.model.lora import without_lora
from wholegpt.training.objectives import ExtendedObjective, Objective, Terms

POSITIONS_AT_ONCE = 1024
"""Positions whose logits are computed at once, so that there are never B·T·V of them."""


@runtime_checkable
class Reference(Protocol):
    """The frozen model beside a trained one."""

    def beside(self, model: NeuralModel) -> AbstractContextManager[NeuralModel]:
        """Return a block in which the reference of ``model`` is available."""
        ...


class FrozenReference:
    """A model of its own."""

    def __init__(self, model: NeuralModel) -> None:
        self.model = model.eval().requires_grad_(False)

    @contextmanager
    def beside(self, model: NeuralModel) -> Iterator[NeuralModel]:
        """Yield the frozen model."""
        yield self.model


class LoraBase:
    """The trained model without its LoRA; no second copy of the weights is needed."""

    @contextmanager
    def beside(self, model: NeuralModel) -> Iterator[NeuralModel]:
        """Yield ``model`` with its LoRA switched off."""
        with without_lora(model):
            yield model


class WithReferenceKL(ExtendedObjective):
    """An objective that also logs ``reference_kl``: KL(π‖π_ref), in nats, mean over the scored positions.

    Both models run without dropout. It adds nothing to the loss.
    """

    def __init__(self, objective: Objective, reference: Reference) -> None:
        super().__init__(objective)
        self.reference = reference

    def __call__(self, model: nn.Module, batch: Any) -> Terms:
        """Return the terms of the objective, with the divergence among the metrics."""
        terms = self.objective(model, batch)
        divergence = self.divergence(model, batch)
        return Terms(terms.total, {**terms.metrics, "reference_kl": (divergence, self.count(batch))})

    @torch.no_grad()
    def divergence(self, model: nn.Module, batch: Any) -> float:
        """Return the sum of KL(π‖π_ref) over the scored positions, in nats."""
        assert isinstance(model, NeuralModel)
        scored, training = batch.targets != IGNORED, model.training
        model.eval()
        hidden = model.hidden_states(batch.token_ids, documents=batch.documents)[scored]
        total = 0.0
        with self.reference.beside(model) as reference:
            other = reference.hidden_states(batch.token_ids, documents=batch.documents)[scored]
            for start in range(0, len(hidden), POSITIONS_AT_ONCE):
                some = slice(start, start + POSITIONS_AT_ONCE)
                pair = model.logits_of(hidden[some]), reference.logits_of(other[some])
                total += float(kl_divergence(*pair).sum())
        model.train(training)
        return total


def with_reference_kl(objective: Objective, reference: Reference | None) -> Objective:
    """Return ``objective`` itself, or with the divergence from a reference logged."""
    return WithReferenceKL(objective, reference) if reference else objective
