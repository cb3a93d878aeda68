"""Import of nanoGPT's ``ckpt.pt``, the only pickled format, through PyTorch's loader that runs no code."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wholegpt.errors import CheckpointError
from wholegpt.interop.foreign import ForeignTensors, completed, load_tensors_only, number_in, tied
from wholegpt.interop.names import LAYER, Table, both, name, own_shapes
from wholegpt.settings.choices import Bias, FeedForward
from wholegpt.settings.presets import gpt2
from wholegpt.settings.schema import ModelConfig

_OURS, _THEIRS = f"blocks.{LAYER}", f"transformer.h.{LAYER}"
TABLE: Table = (
    name("token_embedding.weight", "transformer.wte.weight"),
    name("position_embedding.weight", "transformer.wpe.weight"),
    *both(f"{_OURS}.attention_norm", f"{_THEIRS}.ln_1"),
    *both(f"{_OURS}.feed_forward_norm", f"{_THEIRS}.ln_2"),
    *both(f"{_OURS}.attention.query_key_value", f"{_THEIRS}.attn.c_attn"),
    *both(f"{_OURS}.attention.output", f"{_THEIRS}.attn.c_proj"),
    *both(f"{_OURS}.feed_forward.expand", f"{_THEIRS}.mlp.c_fc"),
    *both(f"{_OURS}.feed_forward.output", f"{_THEIRS}.mlp.c_proj"),
    *both("final_norm", "transformer.ln_f"),
)
FILE = "ckpt.pt"
"""Name of the checkpoint that ``train.py`` writes."""
SIZES = {
    "vocab_size": "vocab_size",
    "context_length": "block_size",
    "n_layers": "n_layer",
    "d_model": "n_embd",
    "n_heads": "n_head",
    "dropout": "dropout",
}
CAUSAL_MASK, UNEMBEDDING = ".attn.bias", "lm_head.weight"
"""The first is in files of old versions; the second is the tied token embedding."""


def read(path: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Read a checkpoint of nanoGPT's ``train.py``: its config, and tensors under our names in float32.

    nanoGPT's GELU is exact. Without biases its LayerNorms have none either, which is a bias of 0 here. Raises
    ``CheckpointError`` for a file that is damaged, inconsistent, or contains anything but tensors and plain
    values.
    """
    content = load_tensors_only(path, "nanoGPT's ckpt.pt")
    arguments, tensors = _parts(content, path)
    config = _config(arguments, path)
    found = ForeignTensors(
        path, {key: tuple(tensor.shape) for key, tensor in tensors.items()}, tensors.__getitem__
    )
    found = found.renamed(_plain_name)
    found = tied(found, UNEMBEDDING, "transformer.wte.weight")
    table = TABLE
    if config.bias is Bias.none:
        table = tuple(line for line in TABLE if not line.ours.endswith(".bias"))
    ours = found.into_ours(table, config)
    shapes = own_shapes(config)
    return config, {name: ours.get(name, torch.zeros(shape)) for name, shape in shapes.items()}


def _parts(content: Any, path: Path) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
    arguments = content.get("model_args") if isinstance(content, Mapping) else None
    tensors = content.get("model") if isinstance(content, Mapping) else None
    if (
        not isinstance(arguments, Mapping)
        or not isinstance(tensors, Mapping)
        or not all(isinstance(key, str) and isinstance(tensor, Tensor) for key, tensor in tensors.items())
    ):
        raise CheckpointError(f"{path}: is not nanoGPT's ckpt.pt: expected model_args and model in it")
    return arguments, tensors


def _config(arguments: Mapping[str, Any], path: Path) -> ModelConfig:
    arguments = {"dropout": 0.0, **arguments}
    missing = [theirs for theirs in SIZES.values() if theirs not in arguments]
    if missing:
        raise CheckpointError(f"{path}: model_args lacks {', '.join(missing)}")
    sizes = {ours: number_in(arguments, theirs, path) for ours, theirs in SIZES.items()}
    bias = Bias.all if arguments.get("bias", True) else Bias.none
    base = replace(gpt2(), bias=bias, feed_forward=FeedForward.gelu)
    return completed(base, sizes, path)


def _plain_name(name: str) -> str:
    """Return a name without the prefix of torch.compile; empty for tensors without parameters of their own."""
    return "" if name.endswith(CAUSAL_MASK) else name.removeprefix("_orig_mod.")
