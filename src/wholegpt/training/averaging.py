"""A running average of the weights (Polyak and Juditsky 1992), kept beside the optimiser's own state."""

import contextlib
from collections.abc import Iterator

import torch

from wholegpt.training.optimizers import parameters_of

AVERAGE = "average"
"""Its name in the optimiser's state of each parameter."""


@torch.no_grad()
def update_average(optimizer: torch.optim.Optimizer, decay: float, step: int) -> None:
    """w̄ ← β·w̄ + (1 − β)·w for every parameter, after optimiser step ``step`` (from 1).

    β = min(``decay``, (1 + step)/(10 + step)), so that the first, poor weights are soon forgotten.
    """
    beta = min(decay, (1 + step) / (10 + step))
    for parameter in parameters_of(optimizer):
        state = optimizer.state[parameter]
        if AVERAGE in state:
            state[AVERAGE].lerp_(parameter, 1 - beta)
        else:
            state[AVERAGE] = parameter.clone()


def exchange(optimizer: torch.optim.Optimizer) -> None:
    """The averages become the weights, and the weights take their place in the state; twice undoes it.

    Does nothing where no average is kept.
    """
    for parameter in parameters_of(optimizer):
        state = optimizer.state.get(parameter, {})
        if AVERAGE in state:
            parameter.data, state[AVERAGE] = state[AVERAGE], parameter.data


@contextlib.contextmanager
def averaged(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """A block in which the model's weights are their averages, where those are kept."""
    exchange(optimizer)
    try:
        yield
    finally:
        exchange(optimizer)
