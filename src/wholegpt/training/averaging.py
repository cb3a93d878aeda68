"""A running average of the weights (Polyak and Juditsky 1992), kept in the optimizer's state."""

import contextlib
from collections.abc import Iterator

import torch

from wholegpt.training.optimizers import parameters_of

AVERAGE = "average"
"""The name of the average in the optimizer's state of a parameter."""


@torch.no_grad()
def update_average(optimizer: torch.optim.Optimizer, decay: float, step: int) -> None:
    """Update the averages, w̄ ← β·w̄ + (1 − β)·w, after optimizer step ``step`` (from 1).

    β = min(``decay``, (1 + step)/(10 + step)), so that the average soon forgets the first weights.
    """
    beta = min(decay, (1 + step) / (10 + step))
    for parameter in parameters_of(optimizer):
        state = optimizer.state[parameter]
        if AVERAGE in state:
            state[AVERAGE].lerp_(parameter, 1 - beta)
        else:
            state[AVERAGE] = parameter.clone()


def exchange(optimizer: torch.optim.Optimizer) -> None:
    """Exchange the weights and their averages; a second call undoes the first.

    Does nothing if no average is kept.
    """
    for parameter in parameters_of(optimizer):
        state = optimizer.state.get(parameter, {})
        if AVERAGE in state:
            parameter.data, state[AVERAGE] = state[AVERAGE], parameter.data


@contextlib.contextmanager
def averaged(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Use the averages, if they are kept, as the weights within the block."""
    exchange(optimizer)
    try:
        yield
    finally:
        exchange(optimizer)
