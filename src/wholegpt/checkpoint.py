"""Model folders and checkpoints: weights, config and tokenizer as safetensors and JSON.

A model folder holds ``model.safetensors``, ``config.json`` and ``tokenizer.json``. A checkpoint is a
model folder with ``training/`` (optimiser state, and the integers that are the whole state of loader
and random numbers) and ``checksums.json``. It is written whole or not at all.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import msgspec
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from wholegpt.adapters import add_lora, train_new_embeddings
from wholegpt.baselines import NGram, RecurrentNetwork
from wholegpt.baselines.ngram import ngram_sizes
from wholegpt.checks import TRANSFORMERS
from wholegpt.choices import Architecture, AttentionKernel, Recompute
from wholegpt.config import LoraConfig, ModelConfig
from wholegpt.data.control import Values
from wholegpt.data.task_columns import TaskColumns
from wholegpt.data.tasks import Task
from wholegpt.errors import CheckpointError, ConfigError
from wholegpt.files import (
    TEMPORARY_PREFIX,
    file_inside,
    lock_folder,
    read_json,
    recover_folder,
    remove_folder,
    sha256_file,
    write_folder_atomic,
    write_json_atomic,
    write_text_atomic,
)
from wholegpt.mapping import from_mapping, to_mapping
from wholegpt.model import Encoder, EncoderDecoder, TaskModel, TokenModel, Transformer
from wholegpt.model.heads import TaskEncoder, TaskTransformer
from wholegpt.tokenizers import Tokenizer

FORMAT_VERSION = 1
WEIGHTS, CONFIG, TOKENIZER, CHECKSUMS = "model.safetensors", "config.json", "tokenizer.json", "checksums.json"
CHAT_TEMPLATE = "chat_template.jinja"
OPTIMIZER, STATE = "training/optimizer.safetensors", "training/state.json"
MODEL_FILES = (WEIGHTS, CONFIG, TOKENIZER, CHAT_TEMPLATE)
CHECKPOINT_FILES = (*MODEL_FILES, OPTIMIZER, STATE, CHECKSUMS)
CHECKPOINTS, STEP_PREFIX = "checkpoints", "step-"


@dataclass(frozen=True)
class ModelFacts:
    """What a model folder says of its model besides the architecture."""

    control: Values = field(default_factory=dict)
    """What it can be asked for: the fields before its training texts, with their values."""
    task: Task | None = None
    """What its head answers."""
    lora: LoraConfig | None = None
    """Its LoRA, whose changes are stored beside the frozen weights."""
    new_tokens: int = 0
    """The last entries of the vocabulary, which were new when it was fine-tuned."""
    columns: TaskColumns | None = None
    """Of the tables with the conversations that it learned to answer from."""
    chat_template: str = ""
    """How conversations with it are written, in a file of its own beside the tokenizer."""


NO_FACTS = ModelFacts()
FACTS = tuple(one.name for one in fields(ModelFacts))


@dataclass(frozen=True)
class ModelFolder:
    """A loaded model with its tokenizer."""

    model: TokenModel
    tokenizer: Tokenizer
    facts: ModelFacts = NO_FACTS


@dataclass(frozen=True)
class TrainingFiles:
    """What a checkpoint keeps beside the model."""

    optimizer: dict[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(
    folder: Path,
    model: TokenModel,
    tokenizer: Tokenizer,
    training: TrainingFiles,
    facts: ModelFacts = NO_FACTS,
) -> None:
    """Write a checkpoint, whole or not at all.

    Raises ``CheckpointError`` when the disk refuses, and for weights that are not finite, so that
    the last good checkpoint is never followed by a broken one.
    """
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{folder}: not saved: {name} holds values that are not finite")

    def fill(target: Path) -> None:
        _fill_model(target, model, tokenizer, facts)
        (target / OPTIMIZER).parent.mkdir()
        safetensors.torch.save_file(training.optimizer, target / OPTIMIZER)
        write_json_atomic(target / STATE, training.state)
        names = (
            WEIGHTS,
            CONFIG,
            TOKENIZER,
            OPTIMIZER,
            STATE,
            *([CHAT_TEMPLATE] if facts.chat_template else []),
        )
        checksums = {name: sha256_file(target / name) for name in names}
        write_json_atomic(target / CHECKSUMS, {"format_version": FORMAT_VERSION, "sha256": checksums})

    _write(folder, fill, CHECKPOINT_FILES)


def save_model(folder: Path, model: TokenModel, tokenizer: Tokenizer, facts: ModelFacts = NO_FACTS) -> None:
    """Write a model folder, whole or not at all; replaces one that is there, but no other file in it.

    Raises ``CheckpointError`` when the disk refuses, ``RunError`` for files of the same names that are not ours.
    """
    with lock_folder(folder, "saving a model"):
        own = MODEL_FILES if is_model_folder(folder) else ()
        _write(folder, lambda target: _fill_model(target, model, tokenizer, facts), own)


def load_model(
    folder: Path,
    device: torch.device | str = "cpu",
    kernel: AttentionKernel = AttentionKernel.plain,
    recompute: Recompute = Recompute.nothing,
) -> ModelFolder:
    """Read a model folder onto ``device``.

    Raises ``CheckpointError`` for what is missing, damaged, newer than this program, or whose parts
    do not fit together.
    """
    config, facts = load_model_config(folder), load_facts(folder)
    tokenizer = Tokenizer.load(folder / TOKENIZER)
    if tokenizer.vocab_size != config.vocab_size:
        raise CheckpointError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size:,} tokens and the model {config.vocab_size:,}; "
            "they do not belong together"
        )
    tensors = _read_tensors(folder / WEIGHTS)
    sizes = ngram_sizes(tensors)
    with torch.device("meta"):
        model = make_model(config, facts, kernel, recompute, sizes)
    expected = {name: tensor.shape for name, tensor in model.own_tensors().items()}
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if expected != found:
        wrong = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
        raise CheckpointError(f"{folder / WEIGHTS}: does not fit {CONFIG}: {listed(wrong)}")
    fresh = make_model(config, facts, kernel, recompute, sizes)
    fresh.load_state_dict(tensors, strict=False)
    return ModelFolder(fresh.to(device), tokenizer, facts)


def load_model_config(folder: Path) -> ModelConfig:
    """The architecture in a model folder's ``config.json``."""
    path = folder / CONFIG
    content = _read_versioned(path)
    try:
        return from_mapping(content["model"], ModelConfig(), str(path))
    except (ConfigError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from None


def load_facts(folder: Path) -> ModelFacts:
    """What else a model folder's ``config.json`` says."""
    path = folder / CONFIG
    content = _read_versioned(path)
    try:
        facts = msgspec.convert({name: content[name] for name in FACTS if name in content}, ModelFacts)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{path}: {error}") from None
    try:
        return replace(facts, chat_template=(folder / CHAT_TEMPLATE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return facts
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{folder / CHAT_TEMPLATE}: cannot be read: {error}") from None


def make_model(
    config: ModelConfig,
    facts: ModelFacts = NO_FACTS,
    kernel: AttentionKernel = AttentionKernel.plain,
    recompute: Recompute = Recompute.nothing,
    sizes: Sequence[int] = (),
) -> TokenModel:
    """A fresh model with the head and the LoRA that ``facts`` tell of; beside LoRA only what is new is trained.

    ``sizes`` are those of the tables of an n-gram model.
    """
    if config.architecture is Architecture.ngram:
        return NGram(config, sizes)
    if config.architecture not in TRANSFORMERS:
        return RecurrentNetwork(config)
    if config.architecture is Architecture.encoder_decoder:
        return EncoderDecoder(config)
    encoder = config.architecture is Architecture.encoder
    if facts.task:
        kind = TaskEncoder if encoder else TaskTransformer
        model: Transformer = kind(config, facts.task.outputs, kernel, recompute)
    else:
        model = (Encoder if encoder else Transformer)(config, kernel, recompute)
    if facts.lora:
        add_lora(model, facts.lora)
        train_new_embeddings(model, facts.new_tokens)
        if isinstance(model, TaskModel):
            model.head.requires_grad_(True)
    return model


def is_model_folder(folder: Path) -> bool:
    """Whether a folder is one by itself, written by this program, and not a run's checkpoint."""
    if (folder / CHECKSUMS).exists():
        return False
    try:
        return _read_json(folder / CONFIG).keys() >= {"format_version", "model"}
    except CheckpointError:
        return False


def load_training(folder: Path) -> TrainingFiles:
    """What ``save_checkpoint`` kept beside the model."""
    return TrainingFiles(_read_tensors(folder / OPTIMIZER), _read_json(folder / STATE))


def verify(folder: Path) -> None:
    """Raise ``CheckpointError`` naming the file that is missing, truncated or altered."""
    content = _read_versioned(folder / CHECKSUMS)
    for name, expected in content.get("sha256", {}).items():
        try:
            path = file_inside(folder, name)
            found = sha256_file(path)
        except ValueError as error:
            raise CheckpointError(f"{folder / CHECKSUMS}: {error}") from None
        except OSError as error:
            raise CheckpointError(f"{folder / name}: cannot be read: {error.strerror}") from None
        if found != expected:
            raise CheckpointError(f"{path}: damaged: its sha256 is not the one in {CHECKSUMS}")


class CheckpointStore:
    """The checkpoints of one run, by step, and which of them is last and which is best."""

    def __init__(self, run: Path, keep: int = 1) -> None:
        self.folder, self.index, self.keep = run / CHECKPOINTS, run / "checkpoints.json", keep

    def path(self, step: int) -> Path:
        """The folder of the checkpoint after ``step`` steps."""
        return self.folder / f"{STEP_PREFIX}{step:08d}"

    def steps(self) -> list[int]:
        """Steps of the checkpoints on disk, ascending, damaged ones included."""
        folders = [path for path in self.folder.glob(f"{STEP_PREFIX}*") if path.is_dir()]
        names = [path.name for path in folders if any((path / name).exists() for name in CHECKPOINT_FILES)]
        numbers = [name.removeprefix(STEP_PREFIX) for name in names]
        return sorted(int(number) for number in numbers if number.isdecimal() and len(number) >= 8)

    def best_step(self) -> int | None:
        """The step whose validation loss was lowest, as last recorded."""
        best = self._read_index().get("best")
        return best if isinstance(best, int) else None

    def save(
        self,
        model: TokenModel,
        tokenizer: Tokenizer,
        training: TrainingFiles,
        step: int,
        best: int | None,
        facts: ModelFacts = NO_FACTS,
    ) -> None:
        """Write the checkpoint of ``step``, record which is best, and delete old and unfinished ones."""
        save_checkpoint(self.path(step), model, tokenizer, training, facts)
        try:
            self.record(step, best)
            # Steps beyond this one are damaged checkpoints that the run went back behind.
            kept = {best, *[s for s in self.steps() if s <= step][-self.keep :]}
            for unfinished in self.folder.glob(f"{TEMPORARY_PREFIX}*"):
                recover_folder(unfinished.with_name(unfinished.name.removeprefix(TEMPORARY_PREFIX)))
            for old in self.steps():
                if old not in kept:
                    remove_folder(self.path(old), CHECKPOINT_FILES)
        except OSError as error:
            raise _disk_error(self.folder, error) from None

    def record(self, last: int, best: int | None) -> None:
        """Write ``checkpoints.json``."""
        write_json_atomic(self.index, {"format_version": FORMAT_VERSION, "last": last, "best": best})

    def last_good(self) -> tuple[int | None, list[str]]:
        """The newest undamaged checkpoint's step, and what is wrong with each newer one.

        A checkpoint written by a newer version of this program is not damage: it raises.
        """
        problems: list[str] = []
        for step in reversed(self.steps()):
            try:
                verify(self.path(step))
                return step, problems
            except NewerFormatError:
                raise
            except CheckpointError as error:
                problems.append(str(error))
        return None, problems

    def choose(self, which: str = "best") -> tuple[Path, list[str]]:
        """The folder of the ``best`` or ``last`` checkpoint, or of a step number; damaged ones passed over.

        Raises ``CheckpointError`` where there is none.
        """
        if which not in ("best", "last"):
            if not which.isdigit() or int(which) not in self.steps():
                raise CheckpointError(
                    f"{self.folder}: no checkpoint '{which}'; there are {self._listed_steps()}"
                )
            verify(self.path(int(which)))
            return self.path(int(which)), []
        best, problems = self.best_step(), []
        if which == "best" and best is not None and self.path(best).is_dir():
            try:
                verify(self.path(best))
                return self.path(best), []
            except NewerFormatError:
                raise
            except CheckpointError as error:
                problems.append(str(error))
        step, more = self.last_good()
        if step is None:
            found = "; ".join(problems + more) or "none was written yet"
            raise CheckpointError(f"{self.folder}: no usable checkpoint ({found})")
        return self.path(step), problems + more

    def _listed_steps(self) -> str:
        return ", ".join(["best", "last", *map(str, self.steps())])

    def _read_index(self) -> dict[str, Any]:
        try:
            content = read_json(self.index)
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}


class NewerFormatError(CheckpointError):
    """Written by a newer version of this program."""


def _fill_model(target: Path, model: TokenModel, tokenizer: Tokenizer, facts: ModelFacts) -> None:
    safetensors.torch.save_file(model.own_tensors(), target / WEIGHTS)
    told = {name: value for name, value in to_mapping(facts).items() if value}
    if template := told.pop("chat_template", ""):
        write_text_atomic(target / CHAT_TEMPLATE, template)
    config = {"format_version": FORMAT_VERSION, "model": to_mapping(model.config), **told}
    write_json_atomic(target / CONFIG, config)
    tokenizer.save(target / TOKENIZER)


def _write(folder: Path, fill: Any, own: Sequence[str]) -> None:
    try:
        write_folder_atomic(folder, fill, own)
    except (OSError, safetensors.SafetensorError) as error:
        raise _disk_error(folder, error) from None


def _disk_error(folder: Path, error: Exception) -> CheckpointError:
    reason = getattr(error, "strerror", None) or str(error)
    return CheckpointError(
        f"{folder}: cannot be written: {reason}; the checkpoints before it are untouched; "
        "free some space and resume"
    )


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError, ValueError, struct.error) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: expected a JSON object")
    return dict(content)


def _read_versioned(path: Path) -> dict[str, Any]:
    content = _read_json(path)
    version = content.get("format_version")
    if not isinstance(version, int):
        raise CheckpointError(f"{path}: has no format_version; it is not from wholegpt")
    if version > FORMAT_VERSION:
        raise NewerFormatError(
            f"{path}: format version {version} is newer than the {FORMAT_VERSION} this program knows; update wholegpt"
        )
    return content


def listed(names: list[str]) -> str:
    """The first ten of ``names``, and how many more there are."""
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
