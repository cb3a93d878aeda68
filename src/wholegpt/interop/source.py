"""Interpret a path for import: a model, or advice on what to do instead."""

from pathlib import Path

from wholegpt.checkpoint import listed
from wholegpt.errors import CheckpointError
from wholegpt.interop import huggingface, nanogpt, peft
from wholegpt.interop.foreign import OTHER_FORMATS, PICKLES
from wholegpt.interop.gguf_architectures import SUFFIX
from wholegpt.settings.models import how_to_get

PICKLED_NAMES = ("pytorch_model", "adapter_model")
_WEIGHTS = (huggingface.WEIGHTS, huggingface.INDEX, huggingface.PICKLED_WEIGHTS, peft.WEIGHTS)


def model_in(path: Path) -> Path:
    """Return the ``transformers`` folder, GGUF file or nanoGPT checkpoint that ``path`` is, contains or belongs to."""
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder{how_to_get(str(path))}")
    if path.suffix in OTHER_FORMATS and path.is_file():
        raise CheckpointError(f"{path}: {OTHER_FORMATS[path.suffix]}")
    if path.is_file() and path.suffix == SUFFIX:
        return path
    if (path / nanogpt.FILE).is_file():
        return path / nanogpt.FILE
    if path.name in (huggingface.CONFIG, huggingface.WEIGHTS, huggingface.INDEX, peft.CONFIG, peft.WEIGHTS):
        return path.parent
    if path.is_file() and path.suffix in PICKLES and path.name.startswith(PICKLED_NAMES):
        if (path.parent / huggingface.WEIGHTS).exists():
            raise CheckpointError(
                f"{path}: such files are pickles; beside it is {huggingface.WEIGHTS}, which is used: name the folder"
            )
        return path.parent
    if path.suffix in (".safetensors", ".json"):
        raise CheckpointError(
            f"{path}: name the folder; the weights that are read are its {huggingface.WEIGHTS}, or what its "
            f"{huggingface.INDEX} lists"
        )
    if path.is_file() and path.suffix not in PICKLES:
        raise CheckpointError(
            f"{path}: is not a model; expected a folder that transformers saved, a GGUF file, nanoGPT's "
            f"{nanogpt.FILE}, or the folder of an adapter"
        )
    if path.is_dir() and not any((path / name).exists() for name in _WEIGHTS):
        files = sorted(path.glob(f"*{SUFFIX}"))
        if len(files) == 1:
            return files[0]
        if files:
            raise CheckpointError(
                f"{path}: holds several GGUF files ({listed([file.name for file in files])}); name one of them"
            )
    if path.is_dir() and not (path / huggingface.CONFIG).is_file() and not (path / peft.CONFIG).is_file():
        raise CheckpointError(f"{path}: {_what_is_in(path)}")
    return path


def _what_is_in(folder: Path) -> str:
    """Return why a folder without a model's config is not a model."""
    names = sorted(path.name for path in folder.iterdir())
    if not names:
        return "is empty; expected a folder that transformers saved, with config.json and the weights"
    if {"config.yaml", "checkpoints.json"} <= {*names}:
        return "is already a run of wholegpt; use it as it is"
    others = [name for name in names if Path(name).suffix in OTHER_FORMATS]
    if others:
        return f"holds {listed(others)}: {OTHER_FORMATS[Path(others[0]).suffix]}"
    return (
        f"holds no {huggingface.CONFIG}, which describes the model of the weights; it holds {listed(names)}. "
        f"Expected a folder that transformers saved, nanoGPT's {nanogpt.FILE}, or an adapter's folder"
    )
