"""What is minimised: a batch format and a loss. A new way of training is a new objective, not a new loop."""

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from wholegpt.data import Batch
from wholegpt.losses import IGNORED, class_negative_log_likelihood, linear_cross_entropy
from wholegpt.model import Encoder, NeuralModel


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


@runtime_checkable
class Objective(Protocol):
    """A mean over the terms of a whole optimiser step, computed micro-batch by micro-batch.

    Batches are of the format that the loader beside it gives.
    """

    unit: str
    """What the mean is called in the log."""

    def count(self, batch: Any) -> int:
        """How many terms ``batch`` holds: the denominator of the mean."""
        ...

    def total(self, model: nn.Module, batch: Any) -> Float[Tensor, " "]:
        """The sum of the terms of ``batch``."""
        ...


class MaskedLanguageModeling:
    """−ln p of each hidden token, in nats; a term is a hidden token (Devlin et al. 2018, section 3.1)."""

    unit = "nats_per_masked_token"

    def count(self, batch: Batch) -> int:
        """Tokens to be found."""
        return int((batch.targets != IGNORED).sum())

    def total(self, model: nn.Module, batch: Batch) -> Float[Tensor, " "]:
        """Sum of their nats."""
        assert isinstance(model, Encoder)
        hidden = model.hidden_states(batch.token_ids, documents=batch.documents)
        hidden_ones = batch.targets != IGNORED
        logits = model.logits_of(hidden[hidden_ones])
        return class_negative_log_likelihood(logits, batch.targets[hidden_ones]).sum()


class LanguageModeling:
    """E8: the negative log-likelihood of each next token, in nats; a term is a token."""

    unit = "nats_per_token"

    def count(self, batch: Batch) -> int:
        """Targets that are scored."""
        return int((batch.targets != IGNORED).sum())

    def total(self, model: nn.Module, batch: Batch) -> Float[Tensor, " "]:
        """Sum of the nats of all targets."""
        assert isinstance(model, NeuralModel)
        hidden = model.hidden_states(batch.token_ids, documents=batch.documents)
        return linear_cross_entropy(hidden, model.unembedding.weight, batch.targets)
