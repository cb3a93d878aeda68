"""Reading what other programs wrote: tensors by name, JSON objects, each with its limits and a clear error."""

import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
"""Of any number in somebody's config, and of blocks."""
PICKLES = (".bin", ".pt", ".pth")
OTHER_FORMATS = {
    ".gguf": (
        "GGUF files of llama.cpp are not imported; import the model that it was made from, or turn it into one: in "
        "transformers, AutoModelForCausalLM.from_pretrained(FOLDER, gguf_file=FILE).save_pretrained(NEW_FOLDER), and "
        "the same with AutoTokenizer"
    ),
    ".onnx": "ONNX files are not imported; import the folder with the model's safetensors",
    ".h5": "TensorFlow's weights are not imported; import the folder with the model's safetensors",
    ".msgpack": "Flax's weights are not imported; import the folder with the model's safetensors",
    ".ckpt": "checkpoints of training programs are not imported; import the folder with the model's safetensors",
}
"""Files of other programs, by their ending, and what to do instead."""


@dataclass(frozen=True)
class ForeignTensors:
    """Tensors somewhere else, known by name and shape, read one by one."""

    where: Path
    """What the errors name."""
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], Tensor]

    def renamed(self, new_name: Callable[[str], str]) -> "ForeignTensors":
        """The same under other names; those that ``new_name`` makes empty are left out."""
        old = {new_name(name): name for name in self.shapes}
        old.pop("", None)
        shapes = {new: self.shapes[name] for new, name in old.items()}
        return ForeignTensors(self.where, shapes, lambda name: self.read(old[name]))

    def into_ours(self, table: Iterable[Name], config: ModelConfig) -> dict[str, Tensor]:
        """All tensors of a model of this ``config``, in our names and float32.

        Raises ``CheckpointError`` naming every tensor that is missing, extra or of another shape.
        """
        # Before anything is built of a size that only the config claims.
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
        return to_ours(self.read_numbers, names)

    def read_numbers(self, name: str) -> Tensor:
        """A tensor in float32. Raises ``CheckpointError`` for integers, and for what is not finite."""
        tensor = self.read(name)
        if not tensor.is_floating_point():
            raise CheckpointError(
                f"{self.where}: {name} holds {tensor.dtype}; expected floating-point numbers"
            )
        tensor = tensor.float()
        if not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{self.where}: {name} holds values that are infinite, or no numbers, in 32 bits"
            )
        return tensor


def tied(tensors: ForeignTensors, copy: str, original: str) -> ForeignTensors:
    """``tensors`` with ``original`` alone of two that are one in the model; either may be the one that is stored.

    Raises ``CheckpointError`` where both are and differ.
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
            f"{tensors.where}: {copy} differs from {original}, but the config says that they are one; where they "
            "are two, set tie_word_embeddings to false"
        )
    return tensors.renamed(lambda name: "" if name == copy else name)


def open_tensors(folder: Path, *names: str) -> ForeignTensors:
    """The tensors of the first of the files ``names`` that is there, or of the several that its index lists.

    Safetensors, and the pickles that PyTorch's loader of tensors alone reads. Raises ``CheckpointError`` for a file
    that is missing or damaged.
    """
    for name in names:
        # One file also where an index is beside it, which is then an older one's: so does transformers.
        if (folder / name).exists():
            return _together(folder / name, {}, [folder / name])
        index = folder / f"{name}.index.json"
        if index.exists():
            by_name = _sharded(folder, index, Path(name).suffix)
            return _together(index, by_name, sorted(set(by_name.values())))
    raise CheckpointError(_nothing_in(folder, names[0]))


def _together(where: Path, by_name: dict[str, Path], paths: list[Path]) -> ForeignTensors:
    """The tensors of all ``paths``, each of which is in the file that ``by_name`` says, if it says so."""
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
"""The shapes of a file's tensors, and how one is read."""


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
    """What the pickle of ``what`` holds, read by PyTorch's loader that runs nothing.

    Raises ``CheckpointError`` for what that loader refuses.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # what a damaged pickle raises is not limited
        raise CheckpointError(
            f"{path}: cannot be read as {what} by PyTorch's loader of tensors and plain values "
            f"({type(error).__name__}); such files are pickles, which can run any program when they are opened "
            "otherwise; where you trust it, convert it: in transformers, "
            "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER) writes safetensors"
        ) from None


def _sharded(folder: Path, index: Path, suffix: str) -> dict[str, Path]:
    """Tensor name -> file, from an index."""
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
    """A number in somebody's config. Raises ``CheckpointError`` naming the field for anything else."""
    value = content.get(field, absent)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= LARGEST_SIZE:
        raise CheckpointError(f"{path}: {field} is {value!r}; expected a number from 0 to {LARGEST_SIZE:,}")
    return value


def whole_number_in(content: Mapping[str, Any], field: str, path: Path) -> int:
    """A size in somebody's config. Raises ``CheckpointError`` naming the field for anything else."""
    value = number_in(content, field, path)
    if not isinstance(value, int):
        raise CheckpointError(f"{path}: {field} is {value!r}; expected a whole number")
    return value


def completed(base: ModelConfig, changes: Mapping[str, Any], path: Path) -> ModelConfig:
    """``base`` with what ``path`` says. Raises ``CheckpointError`` where that makes no model."""
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
