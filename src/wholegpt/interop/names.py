"""Tensor names of other programs, and the way there and back through one table.

Shapes are those of a linear layer's weight, (outputs, inputs); some programs store its transpose, some
split in several tensors what we stack in one.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wholegpt.model import Transformer
from wholegpt.settings.choices import Bias
from wholegpt.settings.schema import ModelConfig

LAYER = "{layer}"


@dataclass(frozen=True)
class Name:
    """One of our tensors and what it is called elsewhere. ``{layer}`` in a name stands for each block's number."""

    ours: str
    theirs: tuple[str, ...]
    """Several where they hold the rows of ours in parts: queries, keys and values."""
    transposed: bool = False

    def of_layer(self, layer: int) -> "Name":
        """The name in one block."""
        theirs = tuple(name.replace(LAYER, str(layer)) for name in self.theirs)
        return Name(self.ours.replace(LAYER, str(layer)), theirs, self.transposed)


def name(ours: str, *theirs: str, transposed: bool = False) -> Name:
    """A line of a table."""
    return Name(ours, theirs, transposed)


def both(ours: str, theirs: str, transposed: bool = False) -> tuple[Name, Name]:
    """Two lines: the weight and the bias of one layer."""
    return Name(f"{ours}.weight", (f"{theirs}.weight",), transposed), Name(
        f"{ours}.bias", (f"{theirs}.bias",)
    )


Table = tuple[Name, ...]


def names_of(table: Table, config: ModelConfig) -> list[Name]:
    """The table written out for every block, without what a model of this ``config`` does not hold."""
    written = [
        line.of_layer(layer)
        for line in table
        for layer in (range(config.n_layers) if LAYER in line.ours else range(1))
    ]
    held = own_shapes(config)
    return [line for line in written if line.ours in held]


def own_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor that a model folder of this ``config`` holds."""
    return {name: tuple(tensor.shape) for name, tensor in _hollow(config).items()}


def with_biases(config: ModelConfig) -> ModelConfig:
    """``config`` with biases, for formats that always hold them: those that a model lacks are 0 there."""
    return replace(config, bias=Bias.all)


def to_theirs(tensors: Mapping[str, Tensor], names: Iterable[Name], config: ModelConfig) -> dict[str, Tensor]:
    """Our tensors under their names, split and transposed as they are there; biases that are missing are 0."""
    shapes = own_shapes(config)
    given: dict[str, Tensor] = {}
    for line in names:
        tensor = tensors.get(line.ours)
        if tensor is None:
            tensor = torch.zeros(shapes[line.ours])
        rows = stacked_rows(config) if len(line.theirs) > 1 else [len(tensor)]
        for theirs, part in zip(line.theirs, tensor.split(rows), strict=True):
            given[theirs] = part.t().contiguous() if line.transposed else part.contiguous()
    return given


def to_ours(read: Callable[[str], Tensor], names: Iterable[Name]) -> dict[str, Tensor]:
    """Their tensors, which ``read`` gives by name, under our names, in float32."""
    given: dict[str, Tensor] = {}
    for line in names:
        parts = [read(theirs) for theirs in line.theirs]
        tensor = torch.cat(parts) if len(parts) > 1 else parts[0]
        given[line.ours] = (tensor.t() if line.transposed else tensor).contiguous()
    return given


def their_shapes(names: Iterable[Name], config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor elsewhere, for a model of this ``config``."""
    hollow = _hollow(config)
    return {name: tuple(tensor.shape) for name, tensor in to_theirs(hollow, names, config).items()}


@functools.lru_cache(maxsize=8)
def _hollow(config: ModelConfig) -> dict[str, Tensor]:
    with torch.device("meta"):
        return Transformer(config).own_tensors()


def stacked_rows(config: ModelConfig) -> list[int]:
    """Rows of queries, keys and values in the one matrix of ours."""
    return [heads * config.d_head for heads in (config.n_heads, config.n_kv_heads, config.n_kv_heads)]
