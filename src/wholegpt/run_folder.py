"""A run's folder: what it records of itself, and whether it may be written."""

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import safetensors
import tokenizers
import torch

from wholegpt import __version__, presets, runtime
from wholegpt.checks import check
from wholegpt.config import Config
from wholegpt.data import PreparedData
from wholegpt.data.example_files import examples_hash
from wholegpt.errors import DataError, RunError
from wholegpt.files import read_json


@dataclass(frozen=True)
class Parent:
    """The model that a run began from."""

    model: str
    """Where it was."""
    checkpoint: str
    weights: str
    """SHA-256 of the file of its weights."""


def run_data(path: Path) -> PreparedData:
    """The tokens of the run at ``path``, checked to be those it began with."""
    own = path / "data"
    data = PreparedData.open(own if PreparedData.exists(own) else Path(recorded_config(path).data.source[0]))
    if data.fingerprint != read_lineage(path).get("data"):
        raise DataError(f"{data.folder}: not the data that {path} began with; restore it, or start a new run")
    data.verify()
    return data


def recorded_config(path: Path) -> Config:
    """The settings of the run at ``path``, checked. Raises ``RunError`` where there is none."""
    if not (path / "config.yaml").exists():
        raise RunError(f"{path}: not a run (it has no config.yaml)")
    config = presets.recipe(str(path / "config.yaml"))
    check(config)
    return config


def read_lineage(path: Path) -> dict[str, Any]:
    """A run's ``lineage.json``. Raises ``RunError`` when it cannot be read."""
    try:
        return read_json(path / "lineage.json")
    except (OSError, ValueError) as error:
        raise RunError(f"{path / 'lineage.json'}: cannot be read: {error}") from None


def run_examples(path: Path) -> Path:
    """Where the examples of the fine-tuning run at ``path`` are, checked to be those it began with."""
    folder = path / "data"
    if examples_hash(folder) != read_lineage(path).get("data"):
        raise DataError(f"{folder}: not the examples that the run began with; start a new run")
    return folder


def source_of(data: PreparedData) -> dict[str, Any]:
    """What ``lineage.json`` says of a text."""
    return {
        "corpus": data.manifest.corpus,
        "provenance": data.manifest.provenance,
        "data": data.fingerprint,
        "data_card": data.card["sha256"],
    }


def lineage_of(config: Config, source: dict[str, Any], parents: Sequence[Parent] = ()) -> dict[str, Any]:
    """What ``lineage.json`` says of a run that begins: its ``source``, parents, seed, versions, machine and command."""
    return {
        "format_version": 1,
        **source,
        "parents": [asdict(parent) for parent in parents],
        "seed": config.runtime.seed,
        "versions": {
            "wholegpt": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "tokenizers": tokenizers.__version__,
            "safetensors": safetensors.__version__,
        },
        "machine": runtime.machine(),
        "command": runtime.command_line(),
    }


def check_free(folder: Path, config: Config, overwrite: bool) -> None:
    """Raise ``RunError`` where a run in ``folder`` would overwrite something that it may not."""
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise RunError(
            f"{folder}: is not valid UTF-8, and weights cannot be read from such a path; name another --out"
        ) from None
    settings = config.finetuning
    trained_on = [source for source in (*config.data.source, settings.data, settings.validation) if source]
    for source, use in [
        *((one, "is to be trained on") for one in trained_on),
        (settings.model, "begins from"),
    ]:
        if source and Path(source).resolve().is_relative_to(folder.resolve()):
            raise RunError(f"{folder}: holds {source}, which the run {use}; name another --out")
    holds_run = (folder / "config.yaml").exists()
    if holds_run and not overwrite:
        raise RunError(
            f"{folder}: already holds a run; go on with it by `wholegpt train --resume {quote(str(folder))}`, "
            "name another --out, or add --overwrite to replace it"
        )
    if folder.exists() and not holds_run and (folder.is_file() or any(folder.iterdir())):
        raise RunError(f"{folder}: exists and is not a run; name another --out")


def free_name(wanted: Path) -> Path:
    """``wanted``, or with the first number from 2 on that makes it new."""
    number, free = 2, wanted
    while free.exists():
        number, free = number + 1, wanted.with_name(f"{wanted.name}-{number}")
    return free
