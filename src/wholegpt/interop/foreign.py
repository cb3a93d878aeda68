"""Read files of other programs: tensors by name and JSON objects, with limits and clear errors."""

import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from torch import Tensor

from wholegpt.checkpoint import listed, read_object
from wholegpt.errors import CheckpointError, ConfigError
from wholegpt.interop.names import Name, names_of, their_shapes, to_ours
from wholegpt.settings.schema import ModelConfig
from wholegpt.settings.serialization import from_mapping
from wholegpt.settings.validation import complete_model

LARGEST_SIZE, MOST_LAYERS = 2**24, 1024
"""Maximum of any number in a config, and of layers."""
PICKLES = (".bin", ".pt", ".pth")
OTHER_FORMATS = {
    ".onnx": "ONNX files are not imported; import the folder with the model's safetensors",
    ".h5": "TensorFlow's weights are not imported; import the folder with the model's safetensors",
    ".msgpack": "Flax's weights are not imported; import the folder with the model's safetensors",
    ".ckpt": "checkpoints of training programs are not imported; import the folder with the model's safetensors",
}
"""Files of other programs, by suffix, and what to do instead."""


@dataclass(frozen=True)
class ForeignTensors:
    """Tensors in foreign files, known by name and shape, read one by one."""

    where: Path
    """Name of the file in errors."""
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], Tensor]

    def renamed(self, new_name: Callable[[str], str]) -> "ForeignTensors":
        """Return the tensors under other names, without those that ``new_name`` maps to an empty name."""
        old = {new_name(name): name for name in self.shapes}
        old.pop("", None)
        shapes = {new: self.shapes[name] for new, name in old.items()}
        return ForeignTensors(self.where, shapes, lambda name: self.read(old[name]))

    def into_ours(self, table: Iterable[Name], config: ModelConfig) -> dict[str, Tensor]:
        """Return all tensors of a model of this ``config``, under our names and in float32.

        Raises ``CheckpointError`` naming every tensor that is missing, extra or of another shape.
        """
        # Check this before allocating anything of a size that only the config claims.
        if config.n_layers > len(self.shapes):
            raise CheckpointError(
                f"{self.where}: holds {len(self.shapes):,} tensors, too few for the {config.n_layers:,} layers of "
                "its config"
            )
        names = names_of(tuple(table), config)
        expected = their_shapes(names, config)
        problems = [
            *(f"{name} is missing" for name in expected.keys() - self.shapes.keys()),
            *(f"{name} is not part of it" for name in self.shapes.keys() - expected.keys()),
            *(
                f"{name} is {_times(self.shapes[name])} and not {_times(shape)}"
                for name, shape in expected.items()
                if self.shapes.get(name, shape) != shape
            ),
        ]
        if problems:
            raise CheckpointError(
                f"{self.where}: does not hold the model of its config: {'; '.join(sorted(problems))}"
            )
        return to_ours(self.read_float32, names)

    def read_float32(self, name: str) -> Tensor:
        """Return a tensor in float32. Raises ``CheckpointError`` for integers, NaN and infinity."""
        tensor = self.read(name)
        if not tensor.is_floating_point():
            raise CheckpointError(
                f"{self.where}: {name} holds {tensor.dtype}; expected floating-point numbers"
            )
        tensor = tensor.float()
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{self.where}: {name} holds values that are infinite or NaN in float32")
        return tensor


def tied(tensors: ForeignTensors, copy: str, original: str) -> ForeignTensors:
    """Return ``tensors`` with only ``original`` of two tied tensors; either may be stored.

    Raises ``CheckpointError`` if both are stored and differ.
    """
    if copy not in tensors.shapes:
        return tensors
    if original not in tensors.shapes:
        return tensors.renamed(lambda name: original if name == copy else name)
    same = tensors.shapes[original] == tensors.shapes[copy] and torch.equal(
        tensors.read(original), tensors.read(copy)
    )
    if not same:
        raise CheckpointError(
            f"{tensors.where}: {copy} differs from {original}, but the config ties them; if they "
            "are separate, set tie_word_embeddings to false"
        )
    return tensors.renamed(lambda name: "" if name == copy else name)


def open_tensors(folder: Path, *names: str) -> ForeignTensors:
    """Open the first existing file of ``names``, or the files that its index lists.

    Supports safetensors, and pickles through PyTorch's tensors-only loader. Raises ``CheckpointError`` for a
    file that is missing or damaged.
    """
    for name in names:
        # A single file takes precedence over an index, which is then older, as in transformers.
        if (folder / name).exists():
            return _together(folder / name, {}, [folder / name])
        index = folder / f"{name}.index.json"
        if index.exists():
            by_name = _sharded(folder, index, Path(name).suffix)
            return _together(index, by_name, sorted(set(by_name.values())))
    raise CheckpointError(_nothing_in(folder, names[0]))


def _together(where: Path, by_name: dict[str, Path], paths: list[Path]) -> ForeignTensors:
    """Return the tensors of all ``paths``, checked against ``by_name``, the index of files."""
    readers: dict[Path, Callable[[str], Tensor]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for path in paths:
        held, readers[path] = _open_pickle(path) if path.suffix in PICKLES else _open(path)
        for name, shape in held.items():
            if name in shapes:
                raise CheckpointError(f"{path}: {name} is in another file too")
            shapes[name] = shape
            by_name.setdefault(name, path)
            if by_name[name] != path:
                raise CheckpointError(f"{where}: {name} is not in {by_name[name].name} but in {path.name}")
    missing = by_name.keys() - shapes.keys()
    if missing:
        raise CheckpointError(f"{where}: names tensors that no file holds: {listed(sorted(missing))}")
    return ForeignTensors(where, shapes, lambda name: readers[by_name[name]](name))


Opened = tuple[dict[str, tuple[int, ...]], Callable[[str], Tensor]]
"""The shapes of a file's tensors, and a function that reads one."""


def _open(path: Path) -> Opened:
    try:
        file: Any = safetensors.safe_open(path, framework="pt")
    except (OSError, safetensors.SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors: {error}") from None
    return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}, file.get_tensor  # noqa: SIM118


def _open_pickle(path: Path) -> Opened:
    content = load_tensors_only(path, "weights")
    if not isinstance(content, Mapping) or not all(isinstance(one, Tensor) for one in content.values()):
        raise CheckpointError(f"{path}: expected tensors by their names, as transformers writes them")
    return {str(name): tuple(tensor.shape) for name, tensor in content.items()}, content.__getitem__


def load_tensors_only(path: Path, what: str) -> Any:
    """Load the pickle of ``what`` with PyTorch's loader that runs no code.

    Raises ``CheckpointError`` for anything that the loader rejects.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged pickle may raise anything
        raise CheckpointError(
            f"{path}: cannot be read as {what} by PyTorch's loader of tensors and plain values "
            f"({type(error).__name__}); such files are pickles, which can run any program when they are opened "
            "otherwise; where you trust it, convert it: in transformers, "
            "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER) writes safetensors"
        ) from None


def _sharded(folder: Path, index: Path, suffix: str) -> dict[str, Path]:
    """Return tensor name -> file, from an index."""
    weights = read_object(index).get("weight_map")
    if (
        not isinstance(weights, dict)
        or not weights
        or not all(isinstance(file, str) for file in weights.values())
    ):
        raise CheckpointError(f"{index}: weight_map does not give a file for each tensor")
    for file in set(weights.values()):
        if Path(file).name != file or not file.endswith(suffix):
            raise CheckpointError(f"{index}: names the file {file!r}; expected {suffix} files beside it")
        if not (folder / file).exists():
            raise CheckpointError(f"{folder / file}: is missing; {index.name} names it")
    return {name: folder / file for name, file in weights.items()}


def _nothing_in(folder: Path, name: str) -> str:
    others = sorted(path for path in folder.iterdir() if path.suffix in (*OTHER_FORMATS, *PICKLES))
    if not others:
        return f"{folder}: holds no {name}"
    advice = OTHER_FORMATS.get(others[0].suffix, "pickles of that name are not read")
    return f"{folder}: holds no {name}, but {others[0].name}: {advice}"


def number_in(content: Mapping[str, Any], field: str, path: Path, absent: float | None = None) -> float:
    """Return a number from a config. Raises ``CheckpointError`` naming the field for anything else."""
    value = content.get(field, absent)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= LARGEST_SIZE:
        raise CheckpointError(f"{path}: {field} is {value!r}; expected a number from 0 to {LARGEST_SIZE:,}")
    return value


def whole_number_in(content: Mapping[str, Any], field: str, path: Path) -> int:
    """Return a size from a config. Raises ``CheckpointError`` naming the field for anything else."""
    value = number_in(content, field, path)
    if not isinstance(value, int):
        raise CheckpointError(f"{path}: {field} is {value!r}; expected a whole number")
    return value


def shortest(value: float) -> float:
    """Return the shortest decimal number that is ``value`` in float32, the type of numbers in GGUF."""
    return float(str(np.float32(value)))


def completed(base: ModelConfig, changes: Mapping[str, Any], path: Path) -> ModelConfig:
    """Return ``base`` with the settings from ``path``. Raises ``CheckpointError`` if the result is invalid."""
    try:
        config = complete_model(from_mapping(changes, base, str(path)))
    except ConfigError as error:
        message = str(error)
        raise CheckpointError(message if message.startswith(str(path)) else f"{path}: {message}") from None
    if config.n_layers > MOST_LAYERS or config.n_heads * config.d_head > LARGEST_SIZE:
        raise CheckpointError(
            f"{path}: claims {config.n_layers:,} layers of {config.n_heads:,} heads, {config.d_head:,} wide each; "
            f"at most {MOST_LAYERS:,} layers and {LARGEST_SIZE:,} for all heads are read"
        )
    return config


def _times(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape)) or "a number"
