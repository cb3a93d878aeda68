"""LoRA (Hu et al. 2022): a trainable low-rank update of frozen weights.

Shapes: B batch dimensions, I inputs, O outputs, R rank.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from wholegpt.errors import ConfigError
from wholegpt.model import NeuralModel, TokenModel
from wholegpt.model.layers.dropout import dropout
from wholegpt.model.layers.linear import Linear
from wholegpt.settings.schema import LoraConfig
from wholegpt.settings.validation import check_lora

FROZEN_ROWS = "frozen_rows"
"""Attribute of a partly frozen matrix: the number of its frozen rows."""


class LoraLinear(nn.Module):
    """x·(W + (α/R)·B·A)ᵀ + b with W and b frozen (section 4.1).

    A is initialized at random and B with zeros, so the initial layer equals the base layer.
    """

    def __init__(self, base: Linear, config: LoraConfig) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale, self.dropout = config.alpha / config.rank, config.dropout
        outputs, inputs = base.weight.shape
        self.down = nn.Parameter(base.weight.new_empty(config.rank, inputs))
        self.up = nn.Parameter(base.weight.new_zeros(outputs, config.rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))  # as linear layers are initialized
        self.merged = False
        self.enabled = True

    @property
    def weight(self) -> Tensor:
        """Return W, including the update if it is merged."""
        return self.base.weight

    @property
    def change(self) -> Float[Tensor, "O I"]:
        """Compute (α/R)·B·A."""
        return self.scale * (self.up @ self.down)

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        """Return the layer's output for each row; dropout is applied to the input of A."""
        if self.merged or not self.enabled:
            return self.base(x)
        dropped = dropout(x, self.dropout if self.training else 0.0)
        return self.base(x) + self.scale * F.linear(F.linear(dropped, self.down), self.up)


def add_lora(model: TokenModel, config: LoraConfig) -> list[str]:
    """Freeze ``model`` and add a trainable update to each linear layer that ``config.targets`` matches.

    Returns the names of those layers. Raises ``ConfigError`` for a pattern without a match, and for a model
    that has LoRA.
    """
    check_lora(config)
    if not config.rank:
        raise ConfigError("lora.rank is 0, which trains nothing; expected at least 1")
    if next(lora_layers(model), None):
        raise ConfigError("the model already has LoRA; merge it first, or remove it")
    linear = {name: module for name, module in model.named_modules() if isinstance(module, Linear)}
    inside = [name for name in linear if name.startswith("blocks.")]
    for pattern in config.targets:
        if not any(fnmatchcase(name, pattern) for name in inside):
            kinds = sorted({name.split(".", 2)[2] for name in inside})
            raise ConfigError(
                f"lora.targets: '{pattern}' matches no linear layer; there are blocks.0 to "
                f"blocks.{model.config.n_layers - 1}, each with {', '.join(kinds)}, and * matches anything"
            )
    chosen = [name for name in inside if any(fnmatchcase(name, pattern) for pattern in config.targets)]
    most = min(min(linear[name].weight.shape) for name in chosen)
    if config.rank > most:
        raise ConfigError(
            f"lora.rank is {config.rank}; expected at most {most}, the full rank of the smallest layer"
        )
    model.requires_grad_(False)
    for name in chosen:
        _replace(model, name, LoraLinear(linear[name], config))
    return chosen


def train_new_embeddings(model: NeuralModel, n_new: int) -> None:
    """Make the last ``n_new`` rows of the frozen token embedding trainable, and those of an untied output
    projection.
    """
    for weight in {id(w): w for w in (model.token_embedding.weight, model.unembedding.weight)}.values():
        weight.requires_grad_(True)
        old = len(weight) - n_new
        weight.register_hook(lambda g, old=old: torch.cat([torch.zeros_like(g[:old]), g[old:]]))
        setattr(weight, FROZEN_ROWS, old)


def trainable_parameters(model: nn.Module) -> int:
    """Return the number of trainable parameters of ``model``."""
    return sum(
        p.numel() - getattr(p, FROZEN_ROWS, 0) * p[0].numel() for p in model.parameters() if p.requires_grad
    )


def partly_frozen(parameter: nn.Parameter) -> bool:
    """Return whether only some rows of a matrix are trainable."""
    return bool(getattr(parameter, FROZEN_ROWS, 0))


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """Yield the layers with LoRA and their names."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            yield name, module


def base_tensors(model: TokenModel) -> dict[str, Tensor]:
    """Return the tensors of the frozen base model, without LoRA. Raises ``ConfigError`` if LoRA is merged."""
    if any(layer.merged for _, layer in lora_layers(model)):
        raise ConfigError("the LoRA of this model is merged; unmerge it first")
    return {
        name.replace(".base.", "."): tensor
        for name, tensor in model.own_tensors().items()
        if not name.endswith((".up", ".down"))
    }


@torch.no_grad()
def merge(model: TokenModel) -> None:
    """Add each LoRA update to its weights, so that inference costs nothing extra. ``unmerge`` reverts it up
    to rounding.

    Raises ``ConfigError`` if the model has no LoRA or if it is merged.
    """
    for layer in _layers(model, merged=False):
        layer.base.weight += layer.change
        layer.merged = True


@torch.no_grad()
def unmerge(model: TokenModel) -> None:
    """Subtract each LoRA update from its weights. Raises ``ConfigError`` if none is merged."""
    for layer in _layers(model, merged=True):
        layer.base.weight -= layer.change
        layer.merged = False


@contextmanager
def without_lora(model: nn.Module) -> Iterator[None]:
    """Switch LoRA off within the block, so that ``model`` is its base. Raises ``ConfigError`` if it is merged."""
    layers = [layer for _, layer in lora_layers(model)]
    if any(layer.merged for layer in layers):
        raise ConfigError("the LoRA of this model is merged; unmerge it first")
    before = [layer.enabled for layer in layers]
    for layer in layers:
        layer.enabled = False
    try:
        yield
    finally:
        for layer, enabled in zip(layers, before, strict=True):
            layer.enabled = enabled


def remove_lora(model: TokenModel) -> None:
    """Replace the LoRA layers by plain linear layers, which keep the update only if it is merged."""
    for name, layer in list(lora_layers(model)):
        _replace(model, name, layer.base)
    model.requires_grad_(True)


def _layers(model: TokenModel, merged: bool) -> list[LoraLinear]:
    layers = [layer for _, layer in lora_layers(model)]
    if not layers:
        raise ConfigError("the model has no LoRA")
    if any(layer.merged is not merged for layer in layers):
        raise ConfigError(f"the LoRA of this model is {'not merged' if merged else 'already merged'}")
    return layers


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
