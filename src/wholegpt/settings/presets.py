"""Presets (published architectures) and recipes (whole configurations), by name."""

import dataclasses
import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from wholegpt.errors import ConfigError, RenamedSettingWarning
from wholegpt.settings.choices import (
    Architecture,
    Attention,
    Bias,
    FeedForward,
    Norm,
    NormPlacement,
    Positions,
    QueryKeyNorm,
    TaskKind,
)
from wholegpt.settings.keywords import checked_keywords
from wholegpt.settings.schema import Config, ModelConfig
from wholegpt.settings.serialization import from_mapping, nearest, read_yaml

T = TypeVar("T")


def gpt1() -> ModelConfig:
    """Return GPT-1 (Radford et al. 2018): 12 post-norm blocks, width 768, context 512; 117 M parameters."""
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
    """Return GPT-2 (Radford et al. 2019): GPT-1 with pre-norm blocks, context 1,024 and a vocabulary of 50,257.

    Sizes are ``small``, ``medium``, ``large`` and ``xl``: 124, 355, 774 and 1558 M parameters.
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
    """Return the Qwen3 architecture: rotary positions, RMSNorm, SwiGLU, grouped-query attention, QK-norm.

    Sizes are ``tiny`` (4 layers, width 256, context 256), ``mini`` (6, 384, 512) and ``small`` (12, 768, 1024).
    The vocabulary size is that of the tokenizer.
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


def llama() -> ModelConfig:
    """Return the Llama architecture (Touvron et al. 2023): ``modern`` without QK-norm."""
    return dataclasses.replace(modern(), query_key_norm=QueryKeyNorm.none)


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
    "Llama": {
        "positions": (Positions.rotary,),
        "norm": (Norm.rms_norm,),
        "norm_placement": (NormPlacement.pre,),
        "query_key_norm": (QueryKeyNorm.none,),
        "feed_forward": (FeedForward.swiglu,),
        "bias": (Bias.none,),
    },
    "Qwen2": {
        "positions": (Positions.rotary,),
        "norm": (Norm.rms_norm,),
        "norm_placement": (NormPlacement.pre,),
        "query_key_norm": (QueryKeyNorm.none,),
        "feed_forward": (FeedForward.swiglu,),
        "bias": (Bias.query_key_value,),
    },
}
"""Architectures that other programs can open: the accepted values of each setting.

A GPT-2 model without biases is exported with biases of 0. In GPT-1 and GPT-2, n_kv_heads = n_heads and
n_heads · d_head = d_model; in GPT-1, d_ff = 4·d_model; in Llama, n_heads divides d_model.
"""


def published_architecture(model: ModelConfig) -> tuple[str, list[str]]:
    """Return the closest published architecture, and the settings in which ``model`` differs from it."""
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
    if model.d_model % model.n_heads:
        differing["Llama"].append("model.n_heads")
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
    """Return the preset called ``name``. Raises ``ConfigError`` with the closest name for an unknown one."""
    if name not in PRESETS:
        raise ConfigError(f"unknown preset '{name}'; {nearest(name, list(PRESETS))}")
    return PRESETS[name]()


def is_preset(name: str) -> bool:
    """Return whether ``name`` means a preset. A file or folder of that name takes precedence."""
    return name in PRESETS and not Path(name).exists()


def recipe_folder() -> Path:
    """Return the folder of the recipes: in the installed package, or at the root of a checkout."""
    installed = Path(__file__).parents[1] / "recipes"
    return installed if installed.is_dir() else Path(__file__).parents[3] / "recipes"


def recipe_names() -> list[str]:
    """Return the names of the recipes."""
    return sorted(path.stem for path in recipe_folder().glob("*.yaml"))


def is_run(folder: Path) -> bool:
    """Return whether a folder is a run of wholegpt: a ``config.yaml``, and a ``lineage.json`` with its version."""
    try:
        lineage = json.loads((folder / "lineage.json").read_text(encoding="utf-8"))
        return (folder / "config.yaml").is_file() and isinstance(lineage["versions"]["wholegpt"], str)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False


def recipe(name_or_path: str) -> Config:
    """Return a named recipe, or the configuration in a YAML file or in the folder of a run.

    The ``model`` section of a recipe may name a ``preset`` to start from.
    """
    path = Path(name_or_path)
    if is_run(path):
        return run_config(path)
    if path.suffix not in (".yaml", ".yml"):
        if name_or_path not in recipe_names():
            if os.path.exists(path):  # noqa: PTH110 (does not raise for a name that is too long)
                raise ConfigError(
                    f"{path}: is not a recipe; expected a YAML file whose name ends in .yaml, the folder of a run, or "
                    f"one of {', '.join(recipe_names())}"
                )
            if path.name != name_or_path:
                raise ConfigError(
                    f"{path}: no such run; expected a YAML file, the folder of a run, or a recipe"
                )
            raise ConfigError(f"unknown recipe '{name_or_path}'; {nearest(name_or_path, recipe_names())}")
        path = recipe_folder() / f"{name_or_path}.yaml"
    return _with_pairs_as_text(configure(read_yaml(path), where=str(path)))


def run_config(folder: Path) -> Config:
    """Return the settings in the ``config.yaml`` of a run, which may be of an earlier version."""
    with warnings.catch_warnings():  # the user did not write that file
        warnings.simplefilter("ignore", RenamedSettingWarning)
        return recipe(str(folder / "config.yaml"))


def _with_pairs_as_text(config: Config) -> Config:
    """Return ``config`` with the table of an encoder-decoder as its source; earlier versions recorded it elsewhere."""
    settings, pairs = config.finetuning, config.model.architecture is Architecture.encoder_decoder
    if not pairs or settings.task is not TaskKind.instruct or settings.model:
        return config
    return dataclasses.replace(
        config,
        finetuning=dataclasses.replace(settings, task=TaskKind.pretraining, data=""),
        data=dataclasses.replace(config.data, source=(settings.data,)),
    )


@checked_keywords
def configure(mapping: Mapping[str, Any], base: Config | None = None, where: str = "config") -> Config:
    """Return ``base`` (default: ``Config()``) with the settings in ``mapping``.

    The ``model`` section may name a ``preset``, which sets the architecture; the vocabulary size stays that of the
    tokenizer unless ``vocab_size`` is given too. Setting only ``training.epochs`` or only ``training.steps`` resets
    the other one.
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
