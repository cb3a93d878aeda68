"""LoRA (Hu et al. 2022): a trained change of low rank beside frozen weights.

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
"""What a partly frozen matrix says of itself."""


class LoraLinear(nn.Module):
    """x·(W + (α/R)·B·A)ᵀ + b, of which W and b are frozen (section 4.1).

    A begins random and B with zeros, so at first it is the layer it was.
    """

    def __init__(self, base: Linear, config: LoraConfig) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale, self.dropout = config.alpha / config.rank, config.dropout
        outputs, inputs = base.weight.shape
        self.down = nn.Parameter(base.weight.new_empty(config.rank, inputs))
        self.up = nn.Parameter(base.weight.new_zeros(outputs, config.rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))  # as linear layers begin
        self.merged = False
        self.enabled = True

    @property
    def weight(self) -> Tensor:
        """W, with the change where that is merged."""
        return self.base.weight

    @property
    def change(self) -> Float[Tensor, "O I"]:
        """(α/R)·B·A."""
        return self.scale * (self.up @ self.down)

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        """The layer's output for each row; dropout is on what A reads."""
        if self.merged or not self.enabled:
            return self.base(x)
        read = dropout(x, self.dropout if self.training else 0.0)
        return self.base(x) + self.scale * F.linear(F.linear(read, self.down), self.up)


def add_lora(model: TokenModel, config: LoraConfig) -> list[str]:
    """Freeze ``model`` and put a trainable change beside each linear layer that ``config.targets`` names.

    Returns those layers' names. Raises ``ConfigError`` for a pattern that names none, and for a model that has LoRA.
    """
    check_lora(config)
    if not config.rank:
        raise ConfigError("lora.rank is 0, which changes nothing; expected at least 1")
    if next(lora_layers(model), None):
        raise ConfigError("the model has LoRA already; merge it first, or take it off")
    linear = {name: module for name, module in model.named_modules() if isinstance(module, Linear)}
    inside = [name for name in linear if name.startswith("blocks.")]
    for pattern in config.targets:
        if not any(fnmatchcase(name, pattern) for name in inside):
            kinds = sorted({name.split(".", 2)[2] for name in inside})
            raise ConfigError(
                f"lora.targets: '{pattern}' names no linear layer; there are blocks.0 to "
                f"blocks.{model.config.n_layers - 1}, each with {', '.join(kinds)}, and * stands for anything"
            )
    chosen = [name for name in inside if any(fnmatchcase(name, pattern) for pattern in config.targets)]
    most = min(min(linear[name].weight.shape) for name in chosen)
    if config.rank > most:
        raise ConfigError(
            f"lora.rank is {config.rank}; expected at most {most}, which no change of a layer exceeds"
        )
    model.requires_grad_(False)
    for name in chosen:
        _replace(model, name, LoraLinear(linear[name], config))
    return chosen


def train_new_embeddings(model: NeuralModel, n_new: int) -> None:
    """Train the last ``n_new`` rows of the frozen token embedding, and of an output projection of its own."""
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
    """Whether only some rows of a matrix are trained."""
    return bool(getattr(parameter, FROZEN_ROWS, 0))


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """The layers with LoRA and their names."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            yield name, module


def base_tensors(model: TokenModel) -> dict[str, Tensor]:
    """What a model folder holds of the frozen model, without LoRA. Raises ``ConfigError`` where that is merged."""
    if any(layer.merged for _, layer in lora_layers(model)):
        raise ConfigError("the LoRA of this model is merged; unmerge it first")
    return {
        name.replace(".base.", "."): tensor
        for name, tensor in model.own_tensors().items()
        if not name.endswith((".up", ".down"))
    }


@torch.no_grad()
def merge(model: TokenModel) -> None:
    """Add each change to its weights, so that the model is as fast as without. ``unmerge`` undoes it, but for rounding.

    Raises ``ConfigError`` where there is none, or where they are merged.
    """
    for layer in _layers(model, merged=False):
        layer.base.weight += layer.change
        layer.merged = True


@torch.no_grad()
def unmerge(model: TokenModel) -> None:
    """Take each change off its weights again. Raises ``ConfigError`` where none is merged."""
    for layer in _layers(model, merged=True):
        layer.base.weight -= layer.change
        layer.merged = False


@contextmanager
def without_lora(model: nn.Module) -> Iterator[None]:
    """Switch LoRA off within the block, so that ``model`` is its base. Raises ``ConfigError`` if it is merged."""
    layers = [layer for _, layer in lora_layers(model)]
    if any(layer.merged for layer in layers):
        raise ConfigError("the LoRA of this model is merged; unmerge it first")
    for layer in layers:
        layer.enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.enabled = True


def remove_lora(model: TokenModel) -> None:
    """Leave plain linear layers: with the change where it is merged, without where it is not."""
    for name, layer in list(lora_layers(model)):
        _replace(model, name, layer.base)
    model.requires_grad_(True)


def _layers(model: TokenModel, merged: bool) -> list[LoraLinear]:
    layers = [layer for _, layer in lora_layers(model)]
    if not layers:
        raise ConfigError("the model has no LoRA")
    if any(layer.merged is not merged for layer in layers):
        raise ConfigError(f"the LoRA of this model is {'not merged' if merged else 'merged already'}")
    return layers


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
