"""Batches of task examples, each a function of (seed, step) alone.

Shapes: B examples, C sequences of each, T positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from wholegpt.data.examples.tasks import EncodedExample
from wholegpt.data.permutation import endless_order, permute, uniform
from wholegpt.runtime import mix_seed

PADDING = 0
"""Stands after the last real token, which sees nothing of it."""
SORTED_BATCHES = 16
"""So many batches are drawn at once and sorted by length among themselves, so that little of them is padding."""
LENGTH_NOISE = 0.25
"""Lengths are taken for up to so much longer, at random: else labels that go with lengths would come by themselves."""


@dataclass(frozen=True)
class TaskBatch:
    """Examples as a model reads them."""

    token_ids: Int[Tensor, "B C T"]
    last: Int[Tensor, "B C"]
    """Place of the last real token of each sequence; what stands after it is padding."""
    second: Int[Tensor, "B C"]
    """Place of the first token of each sequence's second text."""
    targets: Int[Tensor, " B"] | Float[Tensor, " B"]
    """The class, or the place of the right answer, of each example; or its score."""

    def __len__(self) -> int:
        return len(self.token_ids)

    def rows(self, start: int, end: int) -> "TaskBatch":
        """Examples ``start`` to ``end``: a micro-batch."""
        return TaskBatch(*(tensor[start:end] for tensor in self.tensors))

    def to(self, device: torch.device) -> "TaskBatch":
        """The batch on ``device``."""
        return TaskBatch(*(tensor.to(device) for tensor in self.tensors))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them, each with a row for each example."""
        return self.token_ids, self.last, self.second, self.targets


def collate(examples: Sequence[EncodedExample], targets: Sequence[int] | Sequence[float]) -> TaskBatch:
    """Sequences of several lengths side by side, padded at their ends to the longest."""
    sequences = [sequence for example in examples for sequence in example.sequences]
    longest = max(map(len, sequences))
    token_ids = torch.full((len(sequences), longest), PADDING)
    for row, sequence in enumerate(sequences):
        token_ids[row, : len(sequence)] = torch.tensor(sequence)
    last = torch.tensor([len(sequence) - 1 for sequence in sequences])
    second = torch.tensor([example.second for example in examples])
    return TaskBatch(
        token_ids.view(len(examples), -1, longest),
        last.view(len(examples), -1),
        second,
        torch.tensor(targets),
    )


class TaskLoader:
    """Examples in an order of their own in every epoch, forever; the last batch of an epoch goes on in the next.

    Examples of about one length come together: the batches that are drawn at once, at most an epoch, hold each the
    next longer ones, and are read in a random order.
    """

    def __init__(
        self,
        examples: Sequence[EncodedExample],
        targets: Sequence[int] | Sequence[float],
        batch_size: int,
        seed: int,
    ) -> None:
        self.examples, self.targets, self.batch_size, self.seed = examples, targets, batch_size, seed
        self._lengths = np.array([max(map(len, example.sequences)) for example in examples])
        self._sorted = max(1, min(SORTED_BATCHES, len(examples) // batch_size))

    def batch(self, step: int) -> TaskBatch:
        """The batch of optimiser step ``step`` (from 0)."""
        drawn, place = divmod(step, self._sorted)
        size = self._sorted * self.batch_size
        found = np.array(endless_order(drawn * size, size, len(self.examples), self.seed))
        if self._sorted > 1:
            noise = uniform(np.arange(drawn * size, (drawn + 1) * size), mix_seed(self.seed, 7))
            found = found[np.argsort(self._lengths[found] * (1 + LENGTH_NOISE * noise))]
        (number,) = permute(np.array([place]), self._sorted, mix_seed(self.seed, drawn, 6))
        chosen = found[number * self.batch_size : (number + 1) * self.batch_size]
        return collate([self.examples[i] for i in chosen], [self.targets[i] for i in chosen])
