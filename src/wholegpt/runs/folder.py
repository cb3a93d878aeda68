"""A run's folder: what it records of itself, and whether it may be written."""

import contextlib
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any

import safetensors
import tokenizers
import torch

from wholegpt import __version__, runtime
from wholegpt.checkpoint import CHAT_TEMPLATE, CHECKPOINT_FILES, CHECKPOINTS, STEP_PATTERN
from wholegpt.data import PreparedData
from wholegpt.data.examples.files import EXAMPLE_FILES, examples_hash
from wholegpt.data.reading.corpora import HUB_PREFIX
from wholegpt.data.reading.sources import STANDARD_INPUT
from wholegpt.data.text.shards import PREPARED_FILES
from wholegpt.errors import DataError, RunError
from wholegpt.files import claim_name, exists, lock_folder, read_json, recover_unlocked
from wholegpt.settings import presets
from wholegpt.settings.schema import Config
from wholegpt.settings.validation import check
from wholegpt.stages.pretraining import FORGETTING_FILES

PLAN = "plan.json"
LONGEST_NAME = 180
"""Bytes of the name of a run's folder; systems allow 255, and locks and temporary folders have longer names."""
RUN_FILES = (
    *("config.yaml", "lineage.json", "tokenizer.json", CHAT_TEMPLATE, PLAN, *FORGETTING_FILES),
    *("metrics.jsonl", "checkpoints.json", "report.html", "result.json"),
    *(f"data/{name}" for name in (*PREPARED_FILES, *EXAMPLE_FILES)),
    *(f"{CHECKPOINTS}/{STEP_PATTERN}/{name}" for name in CHECKPOINT_FILES),
)
"""Patterns of the files that a run consists of; whatever else lies in its folder is somebody's, and kept."""


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
    if not path.exists():
        recover_unlocked(path)
    if not (path / "config.yaml").exists():
        raise RunError(f"{path}: not a run (it has no config.yaml)")
    config = presets.recipe(str(path / "config.yaml"))
    check(config)
    if not config.model.vocab_size:
        raise RunError(
            f"{path / 'config.yaml'}: is not what a run records (no model.vocab_size); restore the file"
        )
    return config


def read_lineage(path: Path) -> dict[str, Any]:
    """A run's ``lineage.json``. Raises ``RunError`` when it cannot be read."""
    try:
        lineage = read_json(path / "lineage.json")
    except (OSError, ValueError) as error:
        raise RunError(f"{path / 'lineage.json'}: cannot be read: {error}") from None
    if not isinstance(lineage, dict):
        raise RunError(f"{path / 'lineage.json'}: expected a JSON object; restore the file")
    return lineage


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
    settings = config.finetuning
    trained_on = [source for source in (*config.data.source, settings.data, settings.validation) if source]
    for source, use in [
        *((one, "is to be trained on") for one in trained_on),
        (settings.model, "begins from"),
    ]:
        if source and Path(source).resolve().is_relative_to(folder.resolve()):
            raise RunError(f"{folder}: holds {source}, which the run {use}; name another --out")
    holds_run = presets.is_run(folder)
    if holds_run and not overwrite:
        raise RunError(
            f"{folder}: already holds a run; go on with it by `wholegpt train --resume {quote(str(folder))}`, "
            "name another --out, or add --overwrite to replace it"
        )
    if folder.exists() and not holds_run and (folder.is_file() or any(folder.iterdir())):
        raise RunError(f"{folder}: exists and is not a run; name another --out")


def _shortened(name: str) -> str:
    """The beginning of a name that is too long for a folder with others beside it."""
    return os.fsdecode(os.fsencode(name)[:LONGEST_NAME])


@contextlib.contextmanager
def new_folder(out: Path | None, name: str, config: Config, overwrite: bool) -> Iterator[Path]:
    """The folder of a new run, locked within the block: ``out``, or a new one called ``name``.

    Raises ``RunError`` where the run would overwrite something that it may not.
    """
    with lock_folder(out, "train") if out else claim_name(Path("runs") / _shortened(name), "train") as folder:
        check_free(folder, config, overwrite)
        yield folder


def with_absolute_paths(config: Config) -> Config:
    """``config`` whose paths are absolute, so that it means the same in every folder."""
    data, finetuning = config.data, config.finetuning
    return replace(
        config,
        data=replace(data, source=tuple(map(_absolute_source, data.source))),
        tokenizer=replace(config.tokenizer, path=_absolute(config.tokenizer.path)),
        finetuning=replace(
            finetuning,
            **{name: _absolute(getattr(finetuning, name)) for name in ("model", "chat_template")},
            **{name: _absolute_source(getattr(finetuning, name)) for name in ("data", "validation")},
        ),
    )


def _absolute_source(source: str) -> str:
    if source.startswith(HUB_PREFIX):
        return HUB_PREFIX + _absolute(source.removeprefix(HUB_PREFIX))
    return _absolute(source)


def _absolute(path: str) -> str:
    """``path`` from the root on, if it exists; else as given, so that errors quote what was typed.

    Links stay, but for ``..``, which may be behind one.
    """
    if path in ("", STANDARD_INPUT) or not exists(path):
        return path
    return str(Path(path).resolve() if ".." in Path(path).parts else Path(path).absolute())
