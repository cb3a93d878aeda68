"""Reading what other programs wrote: tensors by name, JSON objects, each with its limits and a clear error."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from wholegpt.checkpoint import listed
from wholegpt.checks import complete_model
from wholegpt.config import ModelConfig
from wholegpt.errors import CheckpointError, ConfigError
from wholegpt.files import read_json
from wholegpt.interop.names import Name, names_of, their_shapes, to_ours
from wholegpt.mapping import from_mapping

LARGEST_SIZE, MOST_LAYERS = 2**24, 1024
"""Of any number in somebody's config, and of blocks."""
PICKLES = (".bin", ".pt", ".pth")
LARGEST_JSON = 2**28
"""Bytes of a JSON file that is read at all; the index of a model of 10¹² parameters has less."""


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


def without_copy(tensors: ForeignTensors, copy: str, original: str) -> ForeignTensors:
    """``tensors`` without ``copy``, which has to be ``original`` once more. Raises ``CheckpointError`` if it is not."""
    same = tensors.shapes.get(original) == tensors.shapes[copy] and torch.equal(
        tensors.read(original), tensors.read(copy)
    )
    if not same:
        raise CheckpointError(
            f"{tensors.where}: {copy} differs from {original}, but the config says that they are one"
        )
    return tensors.renamed(lambda name: "" if name == copy else name)


def open_safetensors(folder: Path, single: str, index: str) -> ForeignTensors:
    """The tensors of one file, or of several that an index lists.

    Raises ``CheckpointError`` for a file that is missing or damaged, and for pickles, which are not read.
    """
    if (folder / single).exists():  # also beside an index, which is then an older one's: so does transformers
        where, by_name = folder / single, {}
    elif (folder / index).exists():
        where, by_name = folder / index, _sharded(folder, folder / index)
    else:
        raise CheckpointError(_nothing_in(folder, single))
    files = {path: _open(path) for path in sorted(set(by_name.values()) or {folder / single})}
    shapes: dict[str, tuple[int, ...]] = {}
    for path, file in files.items():
        for name in file.keys():  # noqa: SIM118 (the file is no mapping)
            if name in shapes:
                raise CheckpointError(f"{path}: {name} is in another file too")
            shapes[name] = tuple(file.get_slice(name).get_shape())
            by_name.setdefault(name, path)
            if by_name[name] != path:
                raise CheckpointError(f"{where}: {name} is not in {by_name[name].name} but in {path.name}")
    missing = by_name.keys() - shapes.keys()
    if missing:
        raise CheckpointError(f"{where}: names tensors that no file holds: {listed(sorted(missing))}")
    return ForeignTensors(where, shapes, lambda name: files[by_name[name]].get_tensor(name))


def _open(path: Path) -> Any:
    try:
        return safetensors.safe_open(path, framework="pt")
    except (OSError, safetensors.SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors: {error}") from None


def _sharded(folder: Path, index: Path) -> dict[str, Path]:
    """Tensor name -> file, from an index."""
    weights = read_object(index).get("weight_map")
    if (
        not isinstance(weights, dict)
        or not weights
        or not all(isinstance(file, str) for file in weights.values())
    ):
        raise CheckpointError(f"{index}: weight_map does not give a file for each tensor")
    for file in set(weights.values()):
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise CheckpointError(f"{index}: names the file {file!r}; expected .safetensors files beside it")
        if not (folder / file).exists():
            raise CheckpointError(f"{folder / file}: is missing; {index.name} names it")
    return {name: folder / file for name, file in weights.items()}


def _nothing_in(folder: Path, single: str) -> str:
    pickles = sorted(path.name for suffix in PICKLES for path in folder.glob(f"*{suffix}"))
    return pickled(folder, pickles) if pickles else f"{folder}: holds no {single}"


def pickled(where: Path, names: list[str]) -> str:
    """Why some files are not read, and what to do."""
    return (
        f"{where}: {listed(names)}: such files are pickles, which can run any program when they are opened, so they "
        "are not read; where you trust them, convert them: in transformers, "
        "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER) writes safetensors"
    )


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ``CheckpointError`` where there is none, or too large a one."""
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise CheckpointError(f"{path}: larger than {LARGEST_JSON:,} bytes; it is not read")
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return content


def number_in(content: Mapping[str, Any], field: str, path: Path, absent: float | None = None) -> float:
    """A size in somebody's config. Raises ``CheckpointError`` naming the field for anything else."""
    value = content.get(field)
    value = absent if value is None else value
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= LARGEST_SIZE:
        raise CheckpointError(f"{path}: {field} is {value!r}; expected a number from 0 to {LARGEST_SIZE:,}")
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
