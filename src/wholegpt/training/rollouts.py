"""Rollouts: training data that depend on the weights, such as generated completions.

A stage collects a rollout every ``every`` steps with the weights of that moment, and trains on it until the next one.
Each rollout is written to the run before it is used, so that a killed run resumes bit for bit. The weights that it was
collected with are gone by then. Rollouts that no checkpoint needs any more are deleted.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from wholegpt import runtime
from wholegpt.errors import CheckpointError
from wholegpt.files import write_bytes_atomic
from wholegpt.model import TokenModel
from wholegpt.training.objectives import Rows

ROLLOUTS, PREFIX, SUFFIX = "rollouts", "step-", ".safetensors"
ROLLOUT_PATTERN = PREFIX + 8 * "[0-9]" + SUFFIX
"""Names of the files of rollouts."""

Rollout = Mapping[str, Tensor]


class RolloutStore:
    """The rollouts of one run, by the step that they were collected before."""

    def __init__(self, run: Path) -> None:
        self.folder = run / ROLLOUTS

    def path(self, step: int) -> Path:
        """Return the file of the rollout that was collected before ``step``."""
        return self.folder / f"{PREFIX}{step:08d}{SUFFIX}"

    def write(self, step: int, rollout: Rollout) -> None:
        """Write a rollout, completely or not at all."""
        self.folder.mkdir(exist_ok=True)
        tensors = {name: tensor.cpu().contiguous() for name, tensor in rollout.items()}
        content = safetensors.torch.save(tensors, {"sha256": _hash(tensors)})
        write_bytes_atomic(self.path(step), content)

    def read(self, step: int) -> Rollout | None:
        """Return a rollout, or None if it was not collected. Raises ``CheckpointError`` for a damaged file."""
        path = self.path(step)
        if not path.exists():
            return None
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
                recorded = (file.metadata() or {}).get("sha256")
        except (OSError, safetensors.SafetensorError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from error
        if _hash(tensors) != recorded:
            raise CheckpointError(f"{path}: damaged: its tensors do not have the recorded sha256")
        return tensors

    def steps(self) -> list[int]:
        """Return the steps of the rollouts on disk, ascending."""
        names = [path.name for path in self.folder.glob(ROLLOUT_PATTERN)]
        return sorted(int(name.removeprefix(PREFIX).removesuffix(SUFFIX)) for name in names)

    def rewind(self, step: int) -> None:
        """Delete the rollouts that were collected after ``step``, before a run continues from there."""
        for collected in self.steps():
            if collected > step:
                self.path(collected).unlink()

    def prune(self, checkpoints: Sequence[int]) -> None:
        """Delete the rollouts that are not needed to continue from a checkpoint of any of these steps.

        Two rollouts before each checkpoint are kept, because a stage may compare the current one with the one before
        it, and all rollouts after the last checkpoint.
        """
        collected = self.steps()
        needed = {step for step in collected if step > max(checkpoints)}
        for checkpoint in checkpoints:
            needed |= {*[step for step in collected if step <= checkpoint][-2:]}
        for step in collected:
            if step not in needed:
                self.path(step).unlink()


class RolloutBatches:
    """The batches of a stage that trains on rollouts of ``model``."""

    def __init__(
        self,
        model: TokenModel,
        store: RolloutStore,
        every: int,
        collect: Callable[[TokenModel, int], Rollout],
        batch_of: Callable[[Rollout, int], Rows],
    ) -> None:
        """Train ``every`` steps on each rollout.

        ``collect`` returns a rollout of the model before a step, and must be a function of (weights, seed, step) alone.
        ``batch_of`` returns the batch of the given step of a rollout, counted from 0.
        """
        self.model, self.store, self.every = model, store, every
        self.collect, self.batch_of = collect, batch_of
        self._current: tuple[int, Rollout] | None = None

    def batch(self, step: int) -> Rows:
        """Return the batch of optimizer step ``step`` (from 0); collect a rollout first if one is due.

        Raises ``CheckpointError`` if the rollout of an earlier step is missing.
        """
        start = step - step % self.every
        if self._current is None or self._current[0] != start:
            if step > start and not self.store.path(start).exists():
                raise CheckpointError(
                    f"{self.store.path(start)}: missing, and cannot be collected again, because the weights of step "
                    f"{start} are gone; restore it, or start a new run"
                )
            self._current = start, self._rollout(start)
        return self.batch_of(self._current[1], step - start)

    def _rollout(self, step: int) -> Rollout:
        """Return the rollout of ``step`` from the run's folder, or collect and write it."""
        found = self.store.read(step)
        if found is not None:
            return found
        training = self.model.training
        self.model.eval()
        with torch.no_grad(), runtime.memory_apart():
            collected = self.collect(self.model, step)
        self.model.train(training)
        self.store.write(step, collected)
        return {name: tensor.cpu() for name, tensor in collected.items()}


def _hash(tensors: Rollout) -> str:
    """Return the SHA-256 of the names, shapes, types and values of some tensors."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        found.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
