"""The processes of a run: rank, world size, and what they exchange.

There is one process unless PyTorch's process group is initialized, as under ``torchrun``. The training step divides the
batch among the processes. Runs with a folder, which write and decide, refuse more than one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed
from torch import Tensor, nn

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """The place of this process among those of the run."""

    rank: int = 0
    """The number of this process, from 0."""
    world_size: int = 1
    """The number of processes."""

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes files, prints and decides."""
        return self.rank == 0

    def share(self, rows: int) -> tuple[int, int]:
        """Return the first row of this process's part of a batch, and the row after its last.

        Parts differ by at most one row, and the main process has one if there is any.
        """
        first, end = (-(-rank * rows // self.world_size) for rank in (self.rank, self.rank + 1))
        return first, end

    def sum_values(self, values: Sequence[float], device: torch.device) -> list[float]:
        """Return the sums of ``values`` over all processes, in float64."""
        if self.world_size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=device)
        torch.distributed.all_reduce(total)
        return total.tolist()

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Add the gradients of all processes. A trainable parameter without one counts as zero."""
        if self.world_size == 1:
            return
        for parameter in parameters:
            if parameter.requires_grad:
                gradient: Tensor = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                torch.distributed.all_reduce(gradient)
                parameter.grad = gradient

    def agree(self, value: T) -> T:
        """Return the ``value`` that the main process has."""
        if self.world_size == 1:
            return value
        values: list[T] = [value]
        torch.distributed.broadcast_object_list(values, src=0)
        return values[0]


def processes() -> Processes:
    """Return the processes of this run."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return Processes()
    return Processes(torch.distributed.get_rank(), torch.distributed.get_world_size())
