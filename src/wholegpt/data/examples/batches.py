"""Batches of task examples, each a function of (seed, step).

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
"""Padding token after the last real token, where attention never sees it."""
SORTED_BATCHES = 16
"""How many batches are drawn at once and sorted by length, which reduces padding."""
LENGTH_NOISE = 0.25
"""Random relative increase of lengths before sorting; otherwise labels that correlate with length would be
grouped.
"""


@dataclass(frozen=True)
class TaskBatch:
    """A batch of encoded examples."""

    token_ids: Int[Tensor, "B C T"]
    last: Int[Tensor, "B C"]
    """Position of the last real token of each sequence; padding follows."""
    second: Int[Tensor, "B C"]
    """Position of the first token of each sequence's second text."""
    targets: Int[Tensor, " B"] | Float[Tensor, " B"]
    """The class, the index of the correct choice, or the score of each example."""

    def __len__(self) -> int:
        return len(self.token_ids)

    def rows(self, start: int, end: int) -> "TaskBatch":
        """Return examples ``start`` to ``end``: a micro-batch."""
        return TaskBatch(*(tensor[start:end] for tensor in self.tensors))

    def to(self, device: torch.device) -> "TaskBatch":
        """Return the batch on ``device``."""
        return TaskBatch(*(tensor.to(device) for tensor in self.tensors))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Return all tensors, each with one row per example."""
        return self.token_ids, self.last, self.second, self.targets


def collate(examples: Sequence[EncodedExample], targets: Sequence[int] | Sequence[float]) -> TaskBatch:
    """Collate sequences of different lengths, padded at the end to the longest."""
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
    """Yields batches in a new order in every epoch; the last batch of an epoch continues into the next.

    Examples of similar length are grouped: the batches that are drawn at once, at most an epoch, are sorted
    by length and read in random order.
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
        """Return the batch of optimizer step ``step`` (from 0)."""
        drawn, index = divmod(step, self._sorted)
        size = self._sorted * self.batch_size
        found = np.array(endless_order(drawn * size, size, len(self.examples), self.seed))
        if self._sorted > 1:
            noise = uniform(np.arange(drawn * size, (drawn + 1) * size), mix_seed(self.seed, 7))
            found = found[np.argsort(self._lengths[found] * (1 + LENGTH_NOISE * noise))]
        (number,) = permute(np.array([index]), self._sorted, mix_seed(self.seed, drawn, 6))
        chosen = found[number * self.batch_size : (number + 1) * self.batch_size]
        return collate([self.examples[i] for i in chosen], [self.targets[i] for i in chosen])
