"""Published architectures and named recipes. A preset is a function that returns a ``ModelConfig``."""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from wholegpt.errors import ConfigError
from wholegpt.settings.choices import (
    Architecture,
    Attention,
    Bias,
    FeedForward,
    Norm,
    NormPlacement,
    Positions,
    QueryKeyNorm,
)
from wholegpt.settings.schema import Config, ModelConfig
from wholegpt.settings.serialization import from_mapping, nearest, read_yaml

T = TypeVar("T")


def gpt1() -> ModelConfig:
    """GPT-1 (Radford et al. 2018): 12 post-norm blocks, 768 wide, context 512; 117 M parameters."""
    return ModelConfig(
        vocab_size=40_478,
        context_length=512,
        n_layers=12,
        d_model=768,
        n_heads=12,
        positions=Positions.learned,
        norm=Norm.layer_norm,
        norm_placement=NormPlacement.post,
        norm_epsilon=1e-5,
        query_key_norm=QueryKeyNorm.none,
        feed_forward=FeedForward.gelu_tanh,
        bias=Bias.all,
        dropout=0.1,
    )


def gpt2(size: str = "small") -> ModelConfig:
    """GPT-2 (Radford et al. 2019): GPT-1 with pre-norm blocks, context 1,024 and a vocabulary of 50,257.

    ``small``, ``medium``, ``large`` or ``xl``: 124, 355, 774 or 1558 M parameters.
    """
    sizes = {"small": (12, 768, 12), "medium": (24, 1024, 16), "large": (36, 1280, 20), "xl": (48, 1600, 25)}
    n_layers, d_model, n_heads = _pick(sizes, size)
    return dataclasses.replace(
        gpt1(),
        vocab_size=50_257,
        context_length=1024,
        n_layers=n_layers,
        d_model=d_model,
        n_heads=n_heads,
        norm_placement=NormPlacement.pre,
    )


def modern(size: str = "small") -> ModelConfig:
    """The Qwen3 architecture: rotary positions, RMSNorm, SwiGLU, grouped queries, normalised queries and keys.

    ``tiny`` (4 layers, 256 wide, context 256), ``mini`` (6, 384, 512) or ``small`` (12, 768, 1024).
    The vocabulary is the tokenizer's.
    """
    sizes = {"tiny": (4, 256, 4, 4, 256), "mini": (6, 384, 6, 2, 512), "small": (12, 768, 12, 4, 1024)}
    n_layers, d_model, n_heads, n_kv_heads, context_length = _pick(sizes, size)
    return ModelConfig(
        context_length=context_length,
        n_layers=n_layers,
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
    )


PUBLISHED: dict[str, dict[str, tuple[object, ...]]] = {
    "GPT-1": {
        "positions": (Positions.learned,),
        "norm": (Norm.layer_norm,),
        "norm_placement": (NormPlacement.post,),
        "query_key_norm": (QueryKeyNorm.none,),
        "feed_forward": (FeedForward.gelu_tanh,),
    },
    "GPT-2": {
        "positions": (Positions.learned,),
        "norm": (Norm.layer_norm,),
        "norm_placement": (NormPlacement.pre,),
        "query_key_norm": (QueryKeyNorm.none,),
        "feed_forward": (FeedForward.gelu, FeedForward.gelu_tanh),
    },
    "Qwen3": {
        "positions": (Positions.rotary,),
        "norm": (Norm.rms_norm,),
        "norm_placement": (NormPlacement.pre,),
        "query_key_norm": (QueryKeyNorm.rms_norm,),
        "feed_forward": (FeedForward.swiglu,),
        "bias": (Bias.none,),
    },
}
"""What other programs can open: the values that each published architecture has for the fields named.

A GPT-2 without biases is one whose biases are 0. GPT-1 and GPT-2 have as many key-value heads as heads,
which together are as wide as the model; GPT-1's feed-forward layer is four times as wide.
"""


def published_architecture(model: ModelConfig) -> tuple[str, list[str]]:
    """The published architecture nearest to ``model``, and the fields in which they differ: none if it is one."""
    differing = {
        name: [f"model.{field}" for field, values in fields.items() if getattr(model, field) not in values]
        for name, fields in PUBLISHED.items()
    }
    for fields in differing.values():
        if model.architecture is not Architecture.transformer:
            fields.append("model.architecture")
        if model.attention is not Attention.full:
            fields.append("model.attention")
        if model.n_experts:
            fields.append("model.n_experts")
        if model.distinct_layers not in (0, model.n_layers):
            fields.append("model.distinct_layers")
    for name in ("GPT-1", "GPT-2"):
        if model.n_kv_heads not in (0, model.n_heads):
            differing[name].append("model.n_kv_heads")
        if model.d_head and model.d_head * model.n_heads != model.d_model:
            differing[name].append("model.d_head")
    if model.d_ff not in (0, 4 * model.d_model):
        differing["GPT-1"].append("model.d_ff")
    nearest_name = min(differing, key=lambda name: len(differing[name]))
    return nearest_name, differing[nearest_name]


def _pick(sizes: dict[str, T], size: str) -> T:
    if size not in sizes:
        raise ConfigError(f"unknown size '{size}'; {nearest(size, list(sizes))}")
    return sizes[size]


PRESETS: dict[str, Callable[[], ModelConfig]] = {
    "gpt1": gpt1,
    "gpt2-small": lambda: gpt2("small"),
    "gpt2-medium": lambda: gpt2("medium"),
    "gpt2-large": lambda: gpt2("large"),
    "gpt2-xl": lambda: gpt2("xl"),
    "modern-tiny": lambda: modern("tiny"),
    "modern-mini": lambda: modern("mini"),
    "modern-small": lambda: modern("small"),
}


def preset(name: str) -> ModelConfig:
    """The preset called ``name``. Raises ``ConfigError`` with the nearest right name."""
    if name not in PRESETS:
        raise ConfigError(f"unknown preset '{name}'; {nearest(name, list(PRESETS))}")
    return PRESETS[name]()


def is_preset(name: str) -> bool:
    """Whether ``name`` is a preset here: a file or folder of that name comes first."""
    return name in PRESETS and not Path(name).exists()


def recipe_folder() -> Path:
    """Where the recipes are: inside the installed package, or at the root of a checkout."""
    installed = Path(__file__).parents[1] / "recipes"
    return installed if installed.is_dir() else Path(__file__).parents[3] / "recipes"


def recipe_names() -> list[str]:
    """Names that ``recipe`` takes besides paths."""
    return sorted(path.stem for path in recipe_folder().glob("*.yaml"))


def is_run(folder: Path) -> bool:
    """Whether a folder is a run of this program: ``lineage.json`` beside ``config.yaml`` names its version."""
    try:
        lineage = json.loads((folder / "lineage.json").read_text(encoding="utf-8"))
        return (folder / "config.yaml").is_file() and isinstance(lineage["versions"]["wholegpt"], str)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False


def recipe(name_or_path: str) -> Config:
    """A named recipe, or the config in a YAML file or in a run's folder.

    Beside the fields of ``Config``, a recipe's ``model`` section may name a ``preset`` to start from.
    """
    path = Path(name_or_path)
    if is_run(path):
        path = path / "config.yaml"
    if path.suffix not in (".yaml", ".yml"):
        if name_or_path not in recipe_names():
            if os.path.exists(path):  # noqa: PTH110 (never raises, also for a name that is too long)
                raise ConfigError(
                    f"{path}: is not a recipe; expected a YAML file whose name ends in .yaml, the folder of a run, or "
                    f"one of {', '.join(recipe_names())}"
                )
            raise ConfigError(f"unknown recipe '{name_or_path}'; {nearest(name_or_path, recipe_names())}")
        path = recipe_folder() / f"{name_or_path}.yaml"
    return configure(read_yaml(path), where=str(path))


def configure(mapping: Mapping[str, Any], base: Config | None = None, where: str = "config") -> Config:
    """``base`` (the defaults) changed by ``mapping``, whose ``model`` section may name a ``preset``.

    A preset gives the architecture; the vocabulary is the tokenizer's unless ``vocab_size`` is named too.
    Naming ``training.epochs`` or ``training.steps`` alone takes back the other.
    """
    if not isinstance(mapping, Mapping):
        raise ConfigError(
            f"{where}: expected sections such as 'model', found a value of type {type(mapping).__name__}"
        )
    base = base or Config()
    training = mapping.get("training")
    if isinstance(training, Mapping) and training.get("epochs") and "steps" not in training:
        mapping = {**mapping, "training": {**training, "steps": 0}}
    if isinstance(training, Mapping) and training.get("steps") and "epochs" not in training:
        mapping = {**mapping, "training": {**training, "epochs": 0.0}}
    model = mapping.get("model")
    if isinstance(model, Mapping) and "preset" in model:
        start = dataclasses.replace(preset(str(model["preset"])), vocab_size=0)
        rest = {name: value for name, value in model.items() if name != "preset"}
        base, mapping = dataclasses.replace(base, model=start), {**mapping, "model": rest}
    return from_mapping(mapping, base, where)
