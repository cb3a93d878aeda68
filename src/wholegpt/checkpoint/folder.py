"""Model folders and checkpoints: weights, config and tokenizer as safetensors and JSON.

A model folder contains ``model.safetensors``, ``config.json`` and ``tokenizer.json``. A checkpoint is a model
folder with ``training/`` (optimizer state, and the integers that are the whole state of loader and random
numbers) and ``checksums.json``. It is written whole or not at all.
"""

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

import msgspec
import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from wholegpt.data.control_codes import Values
from wholegpt.data.examples.columns import TaskColumns
from wholegpt.data.examples.tasks import Task
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
from wholegpt.model import Encoder, EncoderDecoder, TokenModel, Transformer
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
HEAD = "head."
"""Prefix of the names of a head's tensors."""
OPTIMIZER, STATE = "training/optimizer.safetensors", "training/state.json"
MODEL_FILES = (WEIGHTS, CONFIG, TOKENIZER, CHAT_TEMPLATE)
CHECKPOINT_FILES = (*MODEL_FILES, OPTIMIZER, STATE, CHECKSUMS)
FLOATING = ("F64", "F32", "F16", "BF16")
"""Accepted dtypes of stored weights, by safetensors' names; models hold them in float32."""
LARGEST_JSON = 2**28
"""Maximum bytes of a JSON file."""


class WithoutInitialization(TorchFunctionMode):
    """A block in which models get no random weights, because all of them are loaded."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Skip the functions of ``torch.nn.init``, and call all others."""
        del types
        named = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return named["tensor"] if "tensor" in named else args[0]
        return func(*args, **named)


@dataclass(frozen=True)
class ModelMetadata:
    """Metadata of a model folder besides the architecture."""

    control: Values = field(default_factory=dict)
    """Control codes: the fields in the headers of its training texts, with their values."""
    task: Task | None = None
    """The task of its head."""
    value_head: bool = False
    """Whether it has a head that estimates the value of each position (PPO)."""
    lora: LoraConfig | None = None
    """Settings of its LoRA, whose updates are stored beside the frozen weights."""
    new_tokens: int = 0
    """Number of tokens at the end of the vocabulary that were added for fine-tuning."""
    columns: TaskColumns | None = None
    """Columns of the tables of conversations that it was fine-tuned on."""
    start_text: str = ""
    """Default start of generation without a prompt; empty: end-of-text."""
    chat_template: str = ""
    """Its chat template, in a separate file beside the tokenizer."""
    end_token_ids: tuple[int, ...] = ()
    """Tokens that end generation, if not end-of-text only."""


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
    """The training state in a checkpoint."""

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

    Raises like ``save_model``, so that the last good checkpoint is never followed by a broken one.
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
    """Write a model folder, whole or not at all; replaces a model there, but no other files.

    Raises ``CheckpointError`` if writing fails, for weights that are not finite, and for tensors that do not
    match the model's config and ``metadata``; ``ConfigError`` for quantized weights and for merged LoRA;
    ``RunError`` for files of the same names that wholegpt did not write.
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
    with_value_head: bool = False,
) -> ModelFolder:
    """Load a model folder onto ``device``; only training needs its value head, if it has one.

    Raises ``CheckpointError`` for files that are missing, damaged, of a newer version, or inconsistent. The
    config is compared with the header of the weights before anything of its size is allocated or read.
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
    if without_head := metadata.value_head and not with_value_head:
        metadata = replace(metadata, value_head=False)
        found = {name: one for name, one in found.items() if not name.startswith(HEAD)}
    blocks = config.distinct_layers or config.n_layers
    if config.architecture in TRANSFORMERS and blocks > len(found):
        raise CheckpointError(
            f"{path}: does not fit {CONFIG}: holds {len(found):,} tensors, too few for {blocks:,} layers"
        )
    sizes = _ngram_sizes(path, found) if config.architecture is Architecture.ngram else ()
    try:
        expected = _expected(config, metadata, sizes)
    except RuntimeError as error:  # sizes whose product exceeds any tensor
        raise CheckpointError(f"{path}: does not fit {CONFIG}: {str(error).splitlines()[0]}") from None
    wrong = _differing({name: one.shape for name, one in found.items()}, expected)
    if wrong:
        raise CheckpointError(f"{path}: does not fit {CONFIG}: {listed(wrong)}")
    for name, one in found.items():
        accepted = FLOATING if expected[name].is_floating_point() else ("I64",)
        if one.dtype not in accepted:
            raise CheckpointError(f"{path}: {name} holds {one.dtype}; expected {', '.join(accepted)}")
    with WithoutInitialization():
        fresh = make_model(config, metadata, kernel, activation_checkpointing, sizes)
    tensors = _read_tensors(path)
    if without_head:
        tensors = {name: one for name, one in tensors.items() if not name.startswith(HEAD)}
    fresh.load_state_dict(tensors, strict=False)
    if broken := not_finite(fresh.own_tensors()):
        raise CheckpointError(f"{path}: {broken} holds values that are not finite in float32")
    return ModelFolder(fresh.to(device), tokenizer, metadata)


def load_model_config(folder: Path) -> ModelConfig:
    """Return the architecture in a model folder's ``config.json``."""
    path = folder / CONFIG
    content = _read_versioned(path)
    try:
        fields, _ = present_names("model", content["model"], str(path))
        return complete_model(from_mapping(fields, ModelConfig(), str(path)))
    except (ConfigError, KeyError, TypeError) as error:
        problem = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"{path}: {problem.removeprefix(f'{path}: ')}") from None


def load_metadata(folder: Path) -> ModelMetadata:
    """Return the other metadata in a model folder's ``config.json``."""
    path = folder / CONFIG
    content = _read_versioned(path)
    try:
        metadata = msgspec.convert(
            {name: content[name] for name in METADATA if name in content}, ModelMetadata
        )
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if not 0 <= metadata.new_tokens <= load_model_config(folder).vocab_size:
        raise CheckpointError(
            f"{path}: new_tokens is {metadata.new_tokens}; expected 0 to the vocabulary size"
        )
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
    """Create a model with the head and the LoRA in ``metadata``; with LoRA, only the new parameters are
    trainable.

    ``sizes`` are the sizes of an n-gram model's tables.
    """
    if config.architecture is Architecture.ngram:
        return NGram(config, sizes)
    if config.architecture not in TRANSFORMERS:
        return RecurrentNetwork(config)
    if config.architecture is Architecture.encoder_decoder:
        return EncoderDecoder(config)
    encoder = config.architecture is Architecture.encoder
    if outputs := metadata.task.outputs if metadata.task else int(metadata.value_head):
        kind = TaskEncoder if encoder else TaskTransformer
        model: Transformer = kind(config, outputs, kernel, activation_checkpointing)
    else:
        model = (Encoder if encoder else Transformer)(config, kernel, activation_checkpointing)
    if metadata.lora:
        add_lora(model, metadata.lora)
        train_new_embeddings(model, metadata.new_tokens)
        for parameter in model.head_parameters():
            parameter.requires_grad_(True)
    return model


def is_model_folder(folder: Path) -> bool:
    """Return whether a folder is a model folder written by wholegpt, and not a run's checkpoint."""
    if (folder / CHECKSUMS).exists():
        return False
    try:
        return read_object(folder / CONFIG).keys() >= {"format_version", "model"}
    except CheckpointError:
        return False


def load_training(folder: Path) -> TrainingFiles:
    """Return the training state that ``save_checkpoint`` wrote."""
    return TrainingFiles(_read_tensors(folder / OPTIMIZER), read_object(folder / STATE))


def verify(folder: Path) -> None:
    """Raise ``CheckpointError`` naming a file that is missing, truncated or altered."""
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
    """A file written by a newer version of wholegpt."""


def not_finite(tensors: Mapping[str, Tensor]) -> str:
    """Return the name of the first tensor with NaN or infinity; empty if there is none."""
    for name, tensor in tensors.items():
        # PyTorch's minimum and maximum are NaN if any element is, so two values suffice.
        if tensor.numel() and not torch.isfinite(torch.stack(tensor.aminmax())).all():
            return name
    return ""


def _tensors_to_save(folder: Path, model: TokenModel, metadata: ModelMetadata) -> dict[str, Tensor]:
    """Return all tensors of a model, after checking that they are those that ``load_model`` expects."""
    if any(layer.merged for _, layer in lora_layers(model)):
        raise ConfigError(
            f"{folder}: not saved: the model's LoRA is merged; call remove_lora or unmerge first"
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
    """Return the tensors of a model folder for such a model, with shapes and dtypes but without memory."""
    return _skeleton(config, metadata.task, metadata.value_head, metadata.lora, tuple(sizes))


@lru_cache(maxsize=4)  # a run saves the same model many times
def _skeleton(
    config: ModelConfig, task: Task | None, value_head: bool, lora: LoraConfig | None, sizes: tuple[int, ...]
) -> dict[str, Tensor]:
    metadata = ModelMetadata(task=task, value_head=value_head, lora=lora)
    with torch.device("meta"):
        return make_model(config, metadata, sizes=sizes).own_tensors()


def _differing(found: Mapping[str, Sequence[int]], expected: Mapping[str, Tensor]) -> list[str]:
    """Return the names that only one side has, or that differ in shape."""
    shapes = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    given = {name: tuple(shape) for name, shape in found.items()}
    return sorted(name for name in shapes.keys() | given.keys() if shapes.get(name) != given.get(name))


class _Stored(NamedTuple):
    """The header entry of a tensor in a safetensors file."""

    shape: tuple[int, ...]
    dtype: str


def _header(path: Path) -> dict[str, _Stored]:
    """Return the header of a safetensors file, without reading the tensors."""
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
    stored = {name: value for name, value in to_mapping(metadata).items() if value}
    if template := stored.pop("chat_template", ""):
        write_text_atomic(target / CHAT_TEMPLATE, template)
    config = {"format_version": FORMAT_VERSION, "model": to_mapping(model.config), **stored}
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
        f"{folder}: cannot be written: {reason}; earlier checkpoints, if any, are unchanged; "
        "free some space and resume"
    )


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError, ValueError, struct.error) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None


def _ngram_sizes(path: Path, found: Mapping[str, _Stored]) -> list[int]:
    """Return ``ngram_sizes`` of a file, by reading one small tensor."""
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
        raise CheckpointError(
            f"{path}: has no format_version, so it is not a wholegpt model; `wholegpt import "
            f"{quote(str(path.parent))}` converts a model from another program"
        )
    if version > FORMAT_VERSION:
        raise NewerFormatError(
            f"{path}: format version {version} is newer than the {FORMAT_VERSION} this program knows; update wholegpt"
        )
    return content


def listed(names: list[str]) -> str:
    """Return the first ten of ``names``, and the number of further ones."""
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
