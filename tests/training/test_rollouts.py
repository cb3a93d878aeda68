"""Rollout files of a run."""

from pathlib import Path

import pytest
import torch

from wholegpt.training.rollouts import RolloutStore


@pytest.mark.parametrize(
    ("checkpoints", "kept"),
    [
        ([0], [0, 4, 8, 12, 16]),
        ([9], [4, 8, 12, 16]),
        ([3, 14], [0, 8, 12, 16]),
        ([16], [12, 16]),
        ([40], [12, 16]),
    ],
)
def test_unneeded_rollouts_are_deleted(checkpoints: list[int], kept: list[int], tmp_path: Path) -> None:
    store = RolloutStore(tmp_path)
    for step in range(0, 20, 4):
        store.write(step, {"token_ids": torch.tensor([step])})
    other = store.folder / "notes.txt"
    other.touch()
    store.prune(checkpoints)
    assert store.steps() == kept and other.exists()
    store.prune(checkpoints)
    assert store.steps() == kept
