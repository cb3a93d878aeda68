"""The checkpoints of a run, and which of them are last and best."""

from pathlib import Path
from shlex import quote
from typing import Any

from wholegpt.checkpoint.folder import (
    CHECKPOINT_FILES,
    CHECKSUMS,
    FORMAT_VERSION,
    NO_METADATA,
    ModelMetadata,
    NewerFormatError,
    TrainingFiles,
    _disk_error,
    save_checkpoint,
    verify,
)
from wholegpt.console import Console
from wholegpt.errors import CheckpointError
from wholegpt.files import (
    TEMPORARY_PREFIX,
    read_json,
    recover_folder,
    remove_folder,
    write_json_atomic,
)
from wholegpt.model import TokenModel
from wholegpt.settings import presets
from wholegpt.settings.models import check_model_exists
from wholegpt.tokenizers import Tokenizer

CHECKPOINTS, STEP_PREFIX = "checkpoints", "step-"
STEP_PATTERN = STEP_PREFIX + 8 * "[0-9]"
"""Pattern of the names of checkpoint folders."""


class CheckpointStore:
    """The checkpoints of one run, by step, and which of them are last and best."""

    def __init__(self, run: Path, keep: int = 1) -> None:
        self.folder, self.index, self.keep = run / CHECKPOINTS, run / "checkpoints.json", keep

    def path(self, step: int) -> Path:
        """Return the folder of the checkpoint after ``step`` steps."""
        return self.folder / f"{STEP_PREFIX}{step:08d}"

    def steps(self) -> list[int]:
        """Return the steps of the checkpoints on disk, ascending, damaged ones included."""
        folders = [path for path in self.folder.glob(f"{STEP_PREFIX}*") if path.is_dir()]
        names = [path.name for path in folders if any((path / name).exists() for name in CHECKPOINT_FILES)]
        numbers = [name.removeprefix(STEP_PREFIX) for name in names]
        return sorted(int(number) for number in numbers if number.isdecimal() and len(number) >= 8)

    def best_step(self) -> int | None:
        """Return the step with the lowest validation loss, as last recorded."""
        best = self._read_index().get("best")
        return best if isinstance(best, int) else None

    def save(
        self,
        model: TokenModel,
        tokenizer: Tokenizer,
        training: TrainingFiles,
        step: int,
        best: int | None,
        metadata: ModelMetadata = NO_METADATA,
    ) -> None:
        """Write the checkpoint of ``step``, record the best one, and delete old and unfinished ones."""
        save_checkpoint(self.path(step), model, tokenizer, training, metadata)
        try:
            self.record(step, best)
            # Later steps are damaged checkpoints, from before the run resumed at an earlier one.
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
        """Return the step of the newest undamaged checkpoint, and the problem of each newer one.

        A checkpoint of a newer version of wholegpt is not damaged: it raises ``NewerFormatError``.
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
        """Return the folder of the ``best`` or ``last`` checkpoint, or of a step, skipping damaged ones.

        Also returns the problems of the skipped ones. Raises ``CheckpointError`` if there is no usable
        checkpoint.
        """
        if which not in ("best", "last"):
            step = {str(step): step for step in self.steps()}.get(which.lstrip("0") or "0")
            if step is None:
                raise CheckpointError(
                    f"{self.folder}: no checkpoint '{which}'; there are {self._listed_steps()}"
                )
            verify(self.path(step))
            return self.path(step), []
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


def model_folder(path: Path, checkpoint: str, console: Console) -> Path:
    """Return ``path`` if it is a model folder, or the ``checkpoint`` of a run; warn of damaged checkpoints."""
    check_model_exists(str(path))
    if path.exists() and str(path) in presets.PRESETS:
        console.note(f"{path} is read from the folder of that name, not from the preset")
    if (path / "model.safetensors").exists():
        if (path / CHECKSUMS).exists():
            verify(path)
        return path
    if (path / CHECKPOINTS).is_dir():
        folder, problems = CheckpointStore(path).choose(checkpoint)
        for problem in problems:
            console.warn(f"{problem}; using {folder.name}")
        return folder
    if presets.is_preset(str(path)):
        raise CheckpointError(
            f"{path}: is a preset, which has no trained weights; name a run or a model folder"
        )
    if path.is_file():
        raise CheckpointError(
            f"{path}: is a file, not a run or a model folder; `wholegpt train {quote(str(path))}` trains a model on "
            "text, and `wholegpt import` opens models of other programs"
        )
    if presets.is_run(path):
        raise CheckpointError(
            f"{path}: is a run that has no checkpoint yet; continue it with `wholegpt train --resume "
            f"{quote(str(path))}`, or start it again with --overwrite"
        )
    if (path / "manifest.json").exists():
        raise CheckpointError(
            f"{path}: is prepared data, not a model; `wholegpt data stats {quote(str(path))}` describes it"
        )
    files = sorted(path.glob("*.gguf"))
    advice = f"; `wholegpt import {quote(str(files[0]))}` makes a model of its GGUF file" if files else ""
    raise CheckpointError(
        f"{path}: holds neither a run (checkpoints/) nor a model (model.safetensors){advice}"
    )
