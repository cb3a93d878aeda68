"""``info``: describe a model."""

import dataclasses
import itertools
import re
from pathlib import Path
from typing import Any

from wholegpt.cli.options import Common, CommonOptions, grid, table
from wholegpt.settings import presets
from wholegpt.settings.choices import Architecture, AttentionKernel
from wholegpt.settings.models import check_model_exists
from wholegpt.settings.schema import ModelConfig
from wholegpt.settings.serialization import to_mapping
from wholegpt.settings.validation import USED, complete_model

ASSUMED_VOCABULARY = 4096
"""Vocabulary size for the counts of presets that take it from the tokenizer."""


def info(run: str, *, checkpoint: str = "best", common: CommonOptions = Common()) -> None:
    """Describe a run, a model folder or a preset: parameters, FLOPs, memory, settings and metadata.

    Parameters
    ----------
    run
        Run or model folder, or a preset such as gpt2-small.
    checkpoint
        Checkpoint to use: best, last, or a step.

    Examples
    --------
    wholegpt info runs/mine
    wholegpt info gpt2-small

    """
    check_model_exists(run)
    config, metadata = _known(run, checkpoint, common)
    from wholegpt.model.accounting import (
        flops_per_token,
        parameter_count,
        saved_activations,
        training_memory_bytes,
    )

    count = parameter_count(config)
    if config.architecture is Architecture.ngram and not presets.is_preset(
        run
    ):  # its size depends on the text
        from wholegpt.runs.load import load

        counted = load(run, checkpoint=checkpoint, console=common.console).model.parameter_count
        count = dataclasses.replace(count, blocks=counted)
    result: dict[str, Any] = {
        "parameters": count.total,
        **({"active_parameters": count.active} if count.unused else {}),
        "parameters_without_embeddings": count.blocks,
        "flops_per_token": flops_per_token(config),
        "memory_bytes": training_memory_bytes(config),
        "activation_bytes_per_token": 4 * saved_activations(config, AttentionKernel.fused),
        "cache_bytes": _cache_bytes(config),
        "config": to_mapping(config),
        **metadata,
    }
    cache = result["cache_bytes"]
    written = (
        [("KV cache of one sequence of the context length, float32", f"{cache:,} bytes")] if cache else []
    )
    active = [("active per token", f"{count.active:,}")] if count.unused else []
    trained = [
        ("without embeddings", f"{count.blocks:,}"),
        ("forward FLOPs per token", f"{result['flops_per_token']:,}"),
        ("weights, gradients and AdamW states in float32", f"{result['memory_bytes']:,} bytes"),
        (
            "activations for the backward pass per token, float32",
            f"{result['activation_bytes_per_token']:,} bytes",
        ),
    ]
    counted = config.architecture is Architecture.ngram
    rows = [("parameters", f"{count.total:,}"), *active, *([] if counted else trained), *written]
    used = USED.get(config.architecture, tuple(result["config"]))
    told = {name: value for name, value in result["config"].items() if name in ("architecture", *used)}
    told |= metadata
    common.show(result, table(rows + [(name, str(value)) for name, value in told.items()]))


def list_recipes(*, common: CommonOptions = Common()) -> None:
    """List the recipes of `train --recipe`, `finetune --recipe` and `ladder --recipe`.

    Examples
    --------
    wholegpt recipes
    wholegpt train --recipe demo

    """
    found = {name: _comment(presets.recipe_folder() / f"{name}.yaml") for name in presets.recipe_names()}
    common.show({"recipes": found}, table(list(found.items())))


def _comment(path: Path) -> str:
    """Return the first sentence of the comment at the beginning of a recipe."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
    text = " ".join(line.removeprefix("#").strip() for line in comment)
    return re.split(r"(?<!al)\. |\.$", text)[0]


def list_presets(*, common: CommonOptions = Common()) -> None:
    """List the presets of `train --preset`: published architectures.

    Examples
    --------
    wholegpt presets
    wholegpt train my.txt --preset modern-mini

    """
    from wholegpt.model.accounting import parameter_count

    found: dict[str, Any] = {}
    for name in presets.PRESETS:
        config = presets.preset(name)
        open_vocabulary = config.vocab_size == 0
        config = complete_model(
            dataclasses.replace(config, vocab_size=config.vocab_size or ASSUMED_VOCABULARY)
        )
        found[name] = {
            "layers": config.n_layers,
            "width": config.d_model,
            "heads": config.n_heads,
            "context": config.context_length,
            "vocabulary": None if open_vocabulary else config.vocab_size,
            "parameters": parameter_count(config).total,
        }
    rows = [["preset", *next(iter(found.values()))]]
    for name, sizes in found.items():
        rows.append([name, *("any" if size is None else f"{size:,}" for size in sizes.values())])
    assumed = f"Parameters of a model with any vocabulary: with {ASSUMED_VOCABULARY:,} tokens."
    common.show({"presets": found}, f"{grid(rows)}\n{assumed}")


def _cache_bytes(config: ModelConfig) -> int | None:
    """Return the KV cache size of one sequence of τ tokens; ``None`` for a model that does not generate."""
    import torch

    from wholegpt.checkpoint import make_model

    if config.architecture is Architecture.encoder:
        return None
    with torch.device("meta"):
        return make_model(config).cache_bytes(1, config.context_length)


def _known(run: str, checkpoint: str, common: Common) -> tuple[ModelConfig, dict[str, Any]]:
    """Return the architecture and the metadata: control codes, task, LoRA."""
    if not presets.is_preset(run):
        from wholegpt.checkpoint import load_metadata, load_model_config, model_folder

        folder = model_folder(Path(run), checkpoint, common.console)
        metadata = {name: value for name, value in to_mapping(load_metadata(folder)).items() if value}
        return load_model_config(folder), metadata
    config = presets.preset(run)
    if config.vocab_size == 0:
        config = dataclasses.replace(config, vocab_size=ASSUMED_VOCABULARY)
        common.console.note(
            f"{run}: the vocabulary size depends on the tokenizer; {config.vocab_size:,} is assumed here"
        )
    return complete_model(config), {}
