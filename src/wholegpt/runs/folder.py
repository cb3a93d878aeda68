"""The folder of a run: its records, and the rules for writing into it."""

import contextlib
import functools
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any

import safetensors
import tokenizers
import torch

from wholegpt import runtime
from wholegpt.checkpoint import (
    CHAT_TEMPLATE,
    CHECKPOINT_FILES,
    CHECKPOINTS,
    MODEL_FILES,
    STEP_PATTERN,
    WEIGHTS,
    CheckpointStore,
    ModelFolder,
    load_metadata,
    load_model,
)
from wholegpt.console import command_line
from wholegpt.data import PreparedData
from wholegpt.data.examples.built_in import is_built_in
from wholegpt.data.examples.files import EXAMPLE_FILES
from wholegpt.data.reading.corpora import HUB_PREFIX
from wholegpt.data.reading.sources import STANDARD_INPUT
from wholegpt.data.text.shards import PREPARED_FILES
from wholegpt.errors import RunError
from wholegpt.files import claim_name, exists, lock_folder, read_json, recover_unlocked, sha256_file
from wholegpt.settings import presets
from wholegpt.settings.schema import Config
from wholegpt.settings.validation import check
from wholegpt.stages.alignment.rewards.specification import parse_reward
from wholegpt.stages.definition import RunContents
from wholegpt.stages.registry import STAGES
from wholegpt.training.rollouts import ROLLOUT_PATTERN, ROLLOUTS
from wholegpt.training.trackers import EVENTS_PREFIX, TENSORBOARD
from wholegpt.training.tracking import TRACKER_ID
from wholegpt.version import __version__

PLAN = "plan.json"
COMPANIONS = "companions"
"""The folder of frozen models that a run's objective needs."""
LONGEST_NAME = 180
"""Most bytes of the name of a run's folder. Systems allow 255; the names of locks and temporary folders are longer."""
RUN_FILES = (
    *("config.yaml", "lineage.json", "tokenizer.json", CHAT_TEMPLATE, PLAN),
    *(name for stage in STAGES for name in stage.files),
    *("metrics.jsonl", "checkpoints.json", "report.html", "result.json"),
    *(f"data/{name}" for name in (*PREPARED_FILES, *EXAMPLE_FILES)),
    *(f"{CHECKPOINTS}/{STEP_PATTERN}/{name}" for name in CHECKPOINT_FILES),
    *(f"{COMPANIONS}/*/{name}" for name in MODEL_FILES),
    f"{ROLLOUTS}/{ROLLOUT_PATTERN}",
    *(TRACKER_ID, f"{TENSORBOARD}/{EVENTS_PREFIX}*"),
)
"""Patterns of the files of a run. Any other file in its folder belongs to the user and is kept."""


@dataclass(frozen=True)
class Parent:
    """The record of the model that a run started from."""

    model: str
    """Its path."""
    checkpoint: str
    weights: str
    """SHA-256 of the file of its weights."""


def run_contents(path: Path, just_written: bool = False) -> RunContents:
    """Return the records of the run at ``path``, from which its stage is opened."""
    config, lineage, own = recorded_config(path), read_lineage(path), path / "data"
    sources = config.data.source
    return RunContents(
        path,
        config,
        str(lineage.get("data")),
        own if PreparedData.exists(own) or not sources else Path(sources[0]),
        lambda: load_metadata(CheckpointStore(path).choose("last")[0]),
        functools.cache(lambda: load_companions(path)),
        just_written,
    )


def load_companions(path: Path) -> dict[str, ModelFolder]:
    """Load the companion models of the run at ``path``, by role.

    Raises ``RunError`` if one is not the model that the run started with.
    """
    device = torch.device(recorded_config(path).runtime.device)
    loaded: dict[str, ModelFolder] = {}
    for role, recorded in read_lineage(path).get("companions", {}).items():
        folder = path / COMPANIONS / role
        if not (folder / WEIGHTS).exists() or sha256_file(folder / WEIGHTS) != recorded:
            raise RunError(f"{folder}: not the {role} model that the run started with; start a new run")
        loaded[role] = load_model(folder, device)
    return loaded


def run_data(path: Path) -> PreparedData:
    """Return the tokens of the run at ``path``, checked to be those that it started with."""
    return run_contents(path).text()


def recorded_config(path: Path) -> Config:
    """Return the settings of the run at ``path``, checked. Raises ``RunError`` if there is no run."""
    if not path.exists():
        recover_unlocked(path)
    if not (path / "config.yaml").exists():
        raise RunError(f"{path}: not a run (it has no config.yaml)")
    config = presets.run_config(path)
    check(config)
    if not config.model.vocab_size:
        raise RunError(
            f"{path / 'config.yaml'}: is not what a run records (no model.vocab_size); restore the file"
        )
    return config


def read_lineage(path: Path) -> dict[str, Any]:
    """Return a run's ``lineage.json``. Raises ``RunError`` if it cannot be read."""
    try:
        lineage = read_json(path / "lineage.json")
    except (OSError, ValueError) as error:
        raise RunError(f"{path / 'lineage.json'}: cannot be read: {error}") from None
    if not isinstance(lineage, dict):
        raise RunError(f"{path / 'lineage.json'}: expected a JSON object; restore the file")
    return lineage


def lineage_of(
    config: Config,
    source: dict[str, Any],
    parents: Sequence[Parent] = (),
    companions: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return ``lineage.json`` of a new run: its ``source``, parents, companions, seed, versions, machine and command.

    ``companions`` are the SHA-256 of the weights of each companion model, by role.
    """
    return {
        "format_version": 1,
        **source,
        "parents": [asdict(parent) for parent in parents],
        "companions": dict(companions or {}),
        "seed": config.runtime.seed,
        "versions": {
            "wholegpt": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "tokenizers": tokenizers.__version__,
            "safetensors": safetensors.__version__,
        },
        "machine": runtime.machine(),
        "command": command_line(),
    }


def check_free(folder: Path, config: Config, overwrite: bool) -> None:
    """Raise ``RunError`` if a run in ``folder`` would overwrite something that it may not."""
    settings = config.finetuning
    examples = "" if is_built_in(settings.data) else settings.data
    trained_on = [source for source in (*config.data.source, examples, settings.validation) if source]
    for source, use in [
        *((one, "trains on") for one in trained_on),
        (settings.model, "starts from"),
    ]:
        if source and Path(source).resolve().is_relative_to(folder.resolve()):
            raise RunError(f"{folder}: holds {source}, which the run {use}; name another --out")
    holds_run = presets.is_run(folder)
    if holds_run and not overwrite:
        raise RunError(
            f"{folder}: already holds a run; continue it with `wholegpt train --resume {quote(str(folder))}`, "
            "name another --out, or replace it with --overwrite (in Python, overwrite=True)"
        )
    if folder.exists() and not holds_run and (folder.is_file() or any(folder.iterdir())):
        raise RunError(f"{folder}: exists and is not a run; name another --out")


def _shortened(name: str) -> str:
    """Return the first ``LONGEST_NAME`` bytes of a name."""
    return os.fsdecode(os.fsencode(name)[:LONGEST_NAME])


@contextlib.contextmanager
def new_folder(out: Path | None, name: str, config: Config, overwrite: bool) -> Iterator[Path]:
    """Yield the folder of a new run, locked within the block: ``out``, or a new folder called ``name``.

    Raises ``RunError`` if the run would overwrite something that it may not.
    """
    with lock_folder(out, "train") if out else claim_name(Path("runs") / _shortened(name), "train") as folder:
        check_free(folder, config, overwrite)
        yield folder


def with_absolute_paths(config: Config) -> Config:
    """Return ``config`` with absolute paths, so that it means the same in every working directory."""
    data, finetuning = config.data, config.finetuning
    return replace(
        config,
        data=replace(data, source=tuple(map(_absolute_source, data.source))),
        tokenizer=replace(config.tokenizer, path=_absolute(config.tokenizer.path)),
        finetuning=replace(
            finetuning,
            **{name: _absolute(getattr(finetuning, name)) for name in ("model", "chat_template")},
            data=finetuning.data if is_built_in(finetuning.data) else _absolute_source(finetuning.data),
            validation=_absolute_source(finetuning.validation),
        ),
        alignment=replace(
            config.alignment,
            rewards=tuple(parse_reward(one).with_path(_absolute) for one in config.alignment.rewards),
        ),
    )


def _absolute_source(source: str) -> str:
    if source.startswith(HUB_PREFIX):
        return HUB_PREFIX + _absolute(source.removeprefix(HUB_PREFIX))
    return _absolute(source)


def _absolute(path: str) -> str:
    """Return the absolute path, if it exists; otherwise ``path``, so that errors quote what the user typed.

    Links are kept, unless ``path`` has ``..``, which may follow one.
    """
    if path in ("", STANDARD_INPUT) or not exists(path):
        return path
    return str(Path(path).resolve() if ".." in Path(path).parts else Path(path).absolute())
