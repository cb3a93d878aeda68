"""A fault at each file-system call of a save, one at a time: the run can always be resumed."""

import errno
from pathlib import Path

import pytest
import torch

from tests.helpers import tiny_model
from tests.torture.file_system import patch_file_system
from wholegpt.checkpoint import CheckpointStore, TrainingFiles, load_model, load_training
from wholegpt.errors import CheckpointError
from wholegpt.model import Transformer
from wholegpt.tokenizers import train_character

TOKENIZER = train_character(["abcdefghijklmnopqrstuvwxyz0123456789"])
MODELS = {step: Transformer(tiny_model(vocab_size=TOKENIZER.vocab_size)) for step in (2, 4, 6, 8)}


class Killed(BaseException):
    """The process is dead: nothing else reaches the disk, and no clean-up runs."""


class Fault:
    """Lets ``count`` calls pass and fails the next one; a kill fails all later calls too."""

    def __init__(self, count: int, kind: str) -> None:
        self.left, self.kind, self.fired, self.calls = count, kind, False, 0

    def __call__(self, name: str) -> None:
        self.calls += 1
        if self.fired and self.kind == "kill":
            raise Killed
        if not self.fired and self.calls > self.left:
            self.fired = True
            raise Killed if self.kind == "kill" else OSError(errno.ENOSPC, "No space left on device")


def save(store: CheckpointStore, step: int, best: int) -> None:
    training = TrainingFiles({"0.step": torch.tensor(float(step))}, {"step": step})
    store.save(MODELS[step], TOKENIZER, training, step, best)


def assert_whole(store: CheckpointStore, step: int) -> None:
    folder = store.path(step)
    loaded = load_model(folder).model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in MODELS[step].state_dict().items())
    assert load_training(folder).state == {"step": step}


def begin(folder: Path) -> CheckpointStore:
    """Create two checkpoints, the first one best, so that the next save also deletes one."""
    store = CheckpointStore(folder, keep=1)
    save(store, 2, best=2)
    save(store, 4, best=2)
    return store


@pytest.mark.slow
def test_fault_at_every_call_of_a_save(tmp_path: Path) -> None:
    counting = Fault(10**9, "error")
    store = begin(tmp_path / "count")
    with pytest.MonkeyPatch.context() as patch:
        patch_file_system(patch, counting)
        save(store, 6, best=6)
    assert counting.calls > 30
    refused = 0
    for kind in ("error", "kill"):
        for call in range(counting.calls):
            store = begin(tmp_path / f"{kind}-{call}")
            with pytest.MonkeyPatch.context() as patch:
                fault = Fault(call, kind)
                patch_file_system(patch, fault)
                try:
                    save(store, 6, best=6)
                except CheckpointError as error:
                    assert "No space left on device" in str(error) and "are unchanged" in str(error)
                    refused += 1
                except Killed:
                    pass
                assert fault.fired
            step, _ = store.last_good()
            assert step in (4, 6), f"{kind} at call {call}: last good is {step}"
            assert_whole(store, step)
            chosen, _ = store.choose("best")
            assert_whole(store, int(chosen.name.removeprefix("step-")))
            save(store, 8, best=8)
            assert store.last_good() == (8, [])
            assert_whole(store, 8)
            assert [path.name for path in store.folder.iterdir()] == ["step-00000008"]
    assert refused > 20


def test_non_finite_weights_are_not_saved(tmp_path: Path) -> None:
    store = begin(tmp_path)
    model = Transformer(tiny_model(vocab_size=TOKENIZER.vocab_size))
    with torch.no_grad():
        model.token_embedding.weight[3, 3] = float("nan")
    with pytest.raises(CheckpointError, match="not finite"):
        store.save(model, TOKENIZER, TrainingFiles({}, {}), 6, None)
    assert store.last_good() == (4, [])
