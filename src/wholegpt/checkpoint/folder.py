"""Model folders and checkpoints: weights, config and tokenizer as safetensors and JSON.

A model folder holds ``model.safetensors``, ``config.json`` and ``tokenizer.json``. A checkpoint is a
model folder with ``training/`` (optimiser state, and the integers that are the whole state of loader
and random numbers) and ``checksums.json``. It is written whole or not at all.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from wholegpt.data.examples.columns import TaskColumns
from wholegpt.data.examples.tasks import Task
from wholegpt.data.text.control import Values
from wholegpt.errors import CheckpointError, ConfigError
from wholegpt.files import (
    file_inside,
    lock_folder,
    read_json,
    sha256_file,
    write_folder_atomic,
    write_json_atomic,
    write_text_atomic,
)
from wholegpt.model import Encoder, EncoderDecoder, TaskModel, TokenModel, Transformer
from wholegpt.model.baselines import NGram, RecurrentNetwork
from wholegpt.model.baselines.ngram import ngram_sizes
from wholegpt.model.heads import TaskEncoder, TaskTransformer
from wholegpt.model.lora import add_lora, lora_layers, train_new_embeddings
from wholegpt.settings.choices import ActivationCheckpointing, Architecture, AttentionKernel
from wholegpt.settings.schema import LoraConfig, ModelConfig
from wholegpt.settings.serialization import from_mapping, present_names, to_mapping
from wholegpt.settings.validation import MOST_ORDER, TRANSFORMERS, complete_model
from wholegpt.tokenizers import Tokenizer

FORMAT_VERSION = 1
WEIGHTS, CONFIG, TOKENIZER, CHECKSUMS = "model.safetensors", "config.json", "tokenizer.json", "checksums.json"
CHAT_TEMPLATE = "chat_template.jinja"
OPTIMIZER, STATE = "training/optimizer.safetensors", "training/state.json"
MODEL_FILES = (WEIGHTS, CONFIG, TOKENIZER, CHAT_TEMPLATE)
CHECKPOINT_FILES = (*MODEL_FILES, OPTIMIZER, STATE, CHECKSUMS)
FLOATING = ("F64", "F32", "F16", "BF16")
"""Formats of weights that are read, by safetensors' names; models hold them in 32 bits."""
LARGEST_JSON = 2**28
"""Bytes of a JSON file that is read at all."""


@dataclass(frozen=True)
class ModelMetadata:
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
    start_text: str = ""
    """What its texts start from without a prompt; empty: end-of-text."""
    chat_template: str = ""
    """How conversations with it are written, in a file of its own beside the tokenizer."""
    end_token_ids: tuple[int, ...] = ()
    """The tokens that end its texts, where it is not end-of-text alone."""


NO_METADATA = ModelMetadata()
METADATA = tuple(one.name for one in fields(ModelMetadata))


@dataclass(frozen=True)
class ModelFolder:
    """A loaded model with its tokenizer."""

    model: TokenModel
    tokenizer: Tokenizer
    metadata: ModelMetadata = NO_METADATA


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
    metadata: ModelMetadata = NO_METADATA,
) -> None:
    """Write a checkpoint, whole or not at all.

    Raises as ``save_model`` does, so that the last good checkpoint is never followed by a broken one.
    """
    tensors = _tensors_to_save(folder, model, metadata)

    def fill(target: Path) -> None:
        _fill_model(target, model, tensors, tokenizer, metadata)
        (target / OPTIMIZER).parent.mkdir()
        safetensors.torch.save_file(training.optimizer, target / OPTIMIZER)
        write_json_atomic(target / STATE, training.state)
        names = (
            WEIGHTS,
            CONFIG,
            TOKENIZER,
            OPTIMIZER,
            STATE,
            *([CHAT_TEMPLATE] if metadata.chat_template else []),
        )
        checksums = {name: sha256_file(target / name) for name in names}
        write_json_atomic(target / CHECKSUMS, {"format_version": FORMAT_VERSION, "sha256": checksums})

    _write(folder, fill, CHECKPOINT_FILES)


def save_model(
    folder: Path, model: TokenModel, tokenizer: Tokenizer, metadata: ModelMetadata = NO_METADATA
) -> None:
    """Write a model folder, whole or not at all; replaces one that is there, but no other file in it.

    Raises ``CheckpointError`` when the disk refuses, for weights that are not finite, and for tensors that are not
    those of the model's config and ``metadata``; ``ConfigError`` for quantized weights and for LoRA that is merged;
    ``RunError`` for files of the same names that are not ours.
    """
    tensors = _tensors_to_save(folder, model, metadata)
    with lock_folder(folder, "saving a model"):
        own = MODEL_FILES if is_model_folder(folder) else ()
        _write(folder, lambda target: _fill_model(target, model, tensors, tokenizer, metadata), own)


def load_model(
    folder: Path,
    device: torch.device | str = "cpu",
    kernel: AttentionKernel = AttentionKernel.plain,
    activation_checkpointing: ActivationCheckpointing = ActivationCheckpointing.none,
) -> ModelFolder:
    """Read a model folder onto ``device``.

    Raises ``CheckpointError`` for what is missing, damaged, newer than this program, or whose parts
    do not fit together. What the config claims is compared with the header of the weights before anything is built of
    that size or read.
    """
    config, metadata = load_model_config(folder), load_metadata(folder)
    tokenizer = Tokenizer.load(folder / TOKENIZER)
    if metadata.end_token_ids:
        tokenizer = tokenizer.with_ends(metadata.end_token_ids)
    if tokenizer.vocab_size != config.vocab_size:
        raise CheckpointError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size:,} tokens and the model {config.vocab_size:,}; "
            "they do not belong together"
        )
    path = folder / WEIGHTS
    found = _header(path)
    blocks = config.distinct_layers or config.n_layers
    if config.architecture in TRANSFORMERS and blocks > len(found):
        raise CheckpointError(
            f"{path}: does not fit {CONFIG}: holds {len(found):,} tensors, too few for {blocks:,} layers"
        )
    sizes = _ngram_sizes(path, found) if config.architecture is Architecture.ngram else ()
    try:
        expected = _expected(config, metadata, sizes)
    except RuntimeError as error:  # sizes whose product no tensor can have
        raise CheckpointError(f"{path}: does not fit {CONFIG}: {str(error).splitlines()[0]}") from None
    wrong = _differing({name: one.shape for name, one in found.items()}, expected)
    if wrong:
        raise CheckpointError(f"{path}: does not fit {CONFIG}: {listed(wrong)}")
    for name, one in found.items():
        accepted = FLOATING if expected[name].is_floating_point() else ("I64",)
        if one.dtype not in accepted:
            raise CheckpointError(f"{path}: {name} holds {one.dtype}; expected {', '.join(accepted)}")
    fresh = make_model(config, metadata, kernel, activation_checkpointing, sizes)
    fresh.load_state_dict(_read_tensors(path), strict=False)
    if broken := not_finite(fresh.own_tensors()):
        raise CheckpointError(f"{path}: {broken} holds values that are not finite in 32 bits")
    return ModelFolder(fresh.to(device), tokenizer, metadata)


def load_model_config(folder: Path) -> ModelConfig:
    """The architecture in a model folder's ``config.json``."""
    path = folder / CONFIG
    content = _read_versioned(path)
    try:
        fields, _ = present_names("model", content["model"], str(path))
        return complete_model(from_mapping(fields, ModelConfig(), str(path)))
    except (ConfigError, KeyError, TypeError) as error:
        problem = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"{path}: {problem.removeprefix(f'{path}: ')}") from None


def load_metadata(folder: Path) -> ModelMetadata:
    """What else a model folder's ``config.json`` says."""
    path = folder / CONFIG
    content = _read_versioned(path)
    try:
        metadata = msgspec.convert(
            {name: content[name] for name in METADATA if name in content}, ModelMetadata
        )
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if not 0 <= metadata.new_tokens <= load_model_config(folder).vocab_size:
        raise CheckpointError(f"{path}: new_tokens is {metadata.new_tokens}, which is none of its vocabulary")
    try:
        return replace(metadata, chat_template=(folder / CHAT_TEMPLATE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return metadata
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{folder / CHAT_TEMPLATE}: cannot be read: {error}") from None


def make_model(
    config: ModelConfig,
    metadata: ModelMetadata = NO_METADATA,
    kernel: AttentionKernel = AttentionKernel.plain,
    activation_checkpointing: ActivationCheckpointing = ActivationCheckpointing.none,
    sizes: Sequence[int] = (),
) -> TokenModel:
    """A fresh model with the head and the LoRA that ``metadata`` tell of; beside LoRA only what is new is trained.

    ``sizes`` are those of the tables of an n-gram model.
    """
    if config.architecture is Architecture.ngram:
        return NGram(config, sizes)
    if config.architecture not in TRANSFORMERS:
        return RecurrentNetwork(config)
    if config.architecture is Architecture.encoder_decoder:
        return EncoderDecoder(config)
    encoder = config.architecture is Architecture.encoder
    if metadata.task:
        kind = TaskEncoder if encoder else TaskTransformer
        model: Transformer = kind(config, metadata.task.outputs, kernel, activation_checkpointing)
    else:
        model = (Encoder if encoder else Transformer)(config, kernel, activation_checkpointing)
    if metadata.lora:
        add_lora(model, metadata.lora)
        train_new_embeddings(model, metadata.new_tokens)
        if isinstance(model, TaskModel):
            model.head.requires_grad_(True)
    return model


def is_model_folder(folder: Path) -> bool:
    """Whether a folder is one by itself, written by this program, and not a run's checkpoint."""
    if (folder / CHECKSUMS).exists():
        return False
    try:
        return read_object(folder / CONFIG).keys() >= {"format_version", "model"}
    except CheckpointError:
        return False


def load_training(folder: Path) -> TrainingFiles:
    """What ``save_checkpoint`` kept beside the model."""
    return TrainingFiles(_read_tensors(folder / OPTIMIZER), read_object(folder / STATE))


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


class NewerFormatError(CheckpointError):
    """Written by a newer version of this program."""


def not_finite(tensors: Mapping[str, Tensor]) -> str:
    """The name of the first tensor that holds NaN or infinity; empty where none does."""
    for name, tensor in tensors.items():
        # NaN is both the least and the largest to PyTorch, so two numbers tell of all of them.
        if tensor.numel() and not torch.isfinite(torch.stack(tensor.aminmax())).all():
            return name
    return ""


def _tensors_to_save(folder: Path, model: TokenModel, metadata: ModelMetadata) -> dict[str, Tensor]:
    """All of a model's tensors, and no others than ``load_model`` will ask for."""
    if any(layer.merged for _, layer in lora_layers(model)):
        raise ConfigError(
            f"{folder}: not saved: the model's LoRA is merged; take it off by remove_lora, or unmerge it"
        )
    tensors = model.own_tensors()
    if broken := not_finite(tensors):
        raise CheckpointError(f"{folder}: not saved: {broken} holds values that are not finite")
    sizes = model.sizes if isinstance(model, NGram) else ()
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if wrong := _differing(found, _expected(model.config, metadata, sizes)):
        raise CheckpointError(
            f"{folder}: not saved: these tensors of the model are not those of its config: {listed(wrong)}"
        )
    return tensors


def _expected(config: ModelConfig, metadata: ModelMetadata, sizes: Sequence[int]) -> dict[str, Tensor]:
    """What a model folder holds of such a model: tensors that have shapes and types, but no memory."""
    return _skeleton(config, metadata.task, metadata.lora, tuple(sizes))


@lru_cache(maxsize=4)  # a run saves the same model many times
def _skeleton(
    config: ModelConfig, task: Task | None, lora: LoraConfig | None, sizes: tuple[int, ...]
) -> dict[str, Tensor]:
    with torch.device("meta"):
        return make_model(config, ModelMetadata(task=task, lora=lora), sizes=sizes).own_tensors()


def _differing(found: Mapping[str, Sequence[int]], expected: Mapping[str, Tensor]) -> list[str]:
    """Names that one side lacks, or that have another shape there."""
    shapes = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    given = {name: tuple(shape) for name, shape in found.items()}
    return sorted(name for name in shapes.keys() | given.keys() if shapes.get(name) != given.get(name))


class _Stored(NamedTuple):
    """A tensor of a safetensors file."""

    shape: tuple[int, ...]
    dtype: str


def _header(path: Path) -> dict[str, _Stored]:
    """What a safetensors file says that it holds, without reading that."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (the file is no mapping)
            return {name: _Stored(tuple(one.get_shape()), one.get_dtype()) for name, one in slices.items()}
    except (OSError, safetensors.SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None


def _fill_model(
    target: Path, model: TokenModel, tensors: dict[str, Tensor], tokenizer: Tokenizer, metadata: ModelMetadata
) -> None:
    safetensors.torch.save_file(tensors, target / WEIGHTS)
    told = {name: value for name, value in to_mapping(metadata).items() if value}
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


def _ngram_sizes(path: Path, found: Mapping[str, _Stored]) -> list[int]:
    """``ngram_sizes`` of a file, of which one small tensor is read."""
    if "ends" not in found or math.prod(found["ends"].shape) > MOST_ORDER:
        return []
    with safetensors.safe_open(path, framework="pt") as file:
        return ngram_sizes({"ends": file.get_tensor("ends")})


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file. Raises ``CheckpointError`` if there is none, or if it is too large."""
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise CheckpointError(f"{path}: larger than {LARGEST_JSON:,} bytes; it is not read")
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: expected a JSON object")
    return dict(content)


def _read_versioned(path: Path) -> dict[str, Any]:
    content = read_object(path)
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
