"""Tensor names of other programs, and the conversion in both directions with one table.

Shapes are those of a linear layer's weight, (outputs, inputs). Some programs store its transpose; some split
a tensor that is stacked here into several.
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
    """One of our tensors and its name elsewhere. ``{layer}`` in a name stands for the index of a block."""

    ours: str
    theirs: tuple[str, ...]
    """Several names if the other program splits the rows of our tensor, as for queries, keys and values."""
    transposed: bool = False

    def of_layer(self, layer: int) -> "Name":
        """Return the name in one block."""
        theirs = tuple(name.replace(LAYER, str(layer)) for name in self.theirs)
        return Name(self.ours.replace(LAYER, str(layer)), theirs, self.transposed)


def name(ours: str, *theirs: str, transposed: bool = False) -> Name:
    """Return a line of a table."""
    return Name(ours, theirs, transposed)


def both(ours: str, theirs: str, transposed: bool = False) -> tuple[Name, Name]:
    """Return two lines: the weight and the bias of one layer."""
    return Name(f"{ours}.weight", (f"{theirs}.weight",), transposed), Name(
        f"{ours}.bias", (f"{theirs}.bias",)
    )


Table = tuple[Name, ...]


def names_of(table: Table, config: ModelConfig) -> list[Name]:
    """Expand the table for every block, without tensors that a model of this ``config`` does not have."""
    expanded = [
        line.of_layer(layer)
        for line in table
        for layer in (range(config.n_layers) if LAYER in line.ours else range(1))
    ]
    own = own_shapes(config)
    return [line for line in expanded if line.ours in own]


def own_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor in a model folder of this ``config``."""
    return {name: tuple(tensor.shape) for name, tensor in _hollow(config).items()}


def with_biases(config: ModelConfig) -> ModelConfig:
    """Return ``config`` with biases, for formats that always store them; biases that a model lacks are 0."""
    return replace(config, bias=Bias.all)


def to_theirs(tensors: Mapping[str, Tensor], names: Iterable[Name], config: ModelConfig) -> dict[str, Tensor]:
    """Return our tensors under their names, split and transposed as they are there; missing biases are 0."""
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
    """Return their tensors, which ``read`` returns by name, under our names in float32."""
    given: dict[str, Tensor] = {}
    for line in names:
        parts = [read(theirs) for theirs in line.theirs]
        tensor = torch.cat(parts) if len(parts) > 1 else parts[0]
        given[line.ours] = (tensor.t() if line.transposed else tensor).contiguous()
    return given


def their_shapes(names: Iterable[Name], config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor elsewhere, for a model of this ``config``."""
    hollow = _hollow(config)
    return {name: tuple(tensor.shape) for name, tensor in to_theirs(hollow, names, config).items()}


@functools.lru_cache(maxsize=8)
def _hollow(config: ModelConfig) -> dict[str, Tensor]:
    with torch.device("meta"):
        return Transformer(config).own_tensors()


def stacked_rows(config: ModelConfig) -> list[int]:
    """Return the numbers of rows of queries, keys and values in our stacked matrix."""
    return [heads * config.d_head for heads in (config.n_heads, config.n_kv_heads, config.n_kv_heads)]
