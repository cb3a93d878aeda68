"""What is minimised: a batch format and a loss. A new way of training is a new objective, not a new loop."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from wholegpt.data import Batch
from wholegpt.losses import IGNORED, negative_log_likelihood


@runtime_checkable
class Objective(Protocol):
    """A mean over the terms of a whole optimiser step, computed micro-batch by micro-batch."""

    def count(self, batch: Batch) -> int:
        """How many terms ``batch`` holds: the denominator of the mean."""
        ...

    def total(self, model: nn.Module, batch: Batch) -> Float[Tensor, " "]:
        """The sum of the terms of ``batch``."""
        ...


class LanguageModeling:
    """E8: the negative log-likelihood of each next token, in nats; a term is a token."""

    def count(self, batch: Batch) -> int:
        """Targets that are scored."""
        return int((batch.targets != IGNORED).sum())

    def total(self, model: nn.Module, batch: Batch) -> Float[Tensor, " "]:
        """Sum of the nats of all targets."""
        return negative_log_likelihood(model(batch.token_ids), batch.targets).sum()
