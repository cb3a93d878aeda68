"""What a path on the command line is: a model that can be imported, or what to do instead."""

import re
from pathlib import Path

from wholegpt.checkpoint import listed
from wholegpt.errors import CheckpointError
from wholegpt.interop import huggingface, nanogpt, peft
from wholegpt.interop.foreign import OTHER_FORMATS, PICKLES

PICKLED_NAMES = ("pytorch_model", "adapter_model")
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
"""How models on the Hugging Face hub are called."""


def model_in(path: Path) -> Path:
    """The folder that ``transformers`` saved, or nanoGPT's checkpoint file, that ``path`` is or holds or is part of."""
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder{_how_to_get(path)}")
    if path.suffix in OTHER_FORMATS and path.is_file():
        raise CheckpointError(f"{path}: {OTHER_FORMATS[path.suffix]}")
    if (path / nanogpt.FILE).is_file():
        return path / nanogpt.FILE
    if path.name in (huggingface.CONFIG, huggingface.WEIGHTS, huggingface.INDEX, peft.CONFIG, peft.WEIGHTS):
        return path.parent
    if path.is_file() and path.suffix in PICKLES and path.name.startswith(PICKLED_NAMES):
        if (path.parent / huggingface.WEIGHTS).exists():
            raise CheckpointError(
                f"{path}: such files are pickles; beside it is {huggingface.WEIGHTS}, which is read: name the folder"
            )
        return path.parent
    if path.suffix in (".safetensors", ".json"):
        raise CheckpointError(
            f"{path}: name the folder; the weights that are read are its {huggingface.WEIGHTS}, or what its "
            f"{huggingface.INDEX} lists"
        )
    if path.is_file() and path.suffix not in PICKLES:
        raise CheckpointError(
            f"{path}: is no model; expected a folder that transformers saved, nanoGPT's {nanogpt.FILE}, or the "
            "folder of an adapter"
        )
    if path.is_dir() and not (path / huggingface.CONFIG).is_file() and not (path / peft.CONFIG).is_file():
        raise CheckpointError(f"{path}: {_what_is_in(path)}")
    return path


def _how_to_get(path: Path) -> str:
    """What to do about a path that is missing and could be the name of a model on the Hugging Face hub."""
    if not HUB_NAME.fullmatch(str(path)):
        return ""
    return (
        f"; nothing is downloaded: if it is a model of the Hugging Face hub, `hf download {path} --local-dir "
        f"{path.name}` gets it (pip install huggingface_hub), and `wholegpt import {path.name}` opens the folder"
    )


def _what_is_in(folder: Path) -> str:
    """Why a folder without a model's config is none."""
    names = sorted(path.name for path in folder.iterdir())
    if not names:
        return "is empty; expected a folder that transformers saved, with config.json and the weights"
    if {"config.yaml", "checkpoints.json"} <= {*names}:
        return "is a run of wholegpt already; use it as it is"
    others = [name for name in names if Path(name).suffix in OTHER_FORMATS]
    if others:
        return f"holds {listed(others)}: {OTHER_FORMATS[Path(others[0]).suffix]}"
    return (
        f"holds no {huggingface.CONFIG}, which says what model the weights are of; it holds {listed(names)}. "
        f"Expected a folder that transformers saved, nanoGPT's {nanogpt.FILE}, or an adapter's folder"
    )
