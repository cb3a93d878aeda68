"""Two processes compute the same gradients as one."""

import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed

from tests.helpers import tiny_model
from wholegpt.data import Batch
from wholegpt.model import Transformer
from wholegpt.runtime import Processes, processes
from wholegpt.settings.choices import Dtype
from wholegpt.settings.schema import Config, PrecisionConfig, TrainingConfig
from wholegpt.training.loop import accumulate_gradients
from wholegpt.training.objectives import LanguageModeling


def gradients(rows: int) -> tuple[dict[str, float], list[torch.Tensor]]:
    """Return the metrics and gradients of a batch with some unscored tokens, in micro-batches of two."""
    torch.manual_seed(0)
    model = Transformer(tiny_model()).double()
    token_ids = torch.randint(37, (rows, 13))
    targets = token_ids[:, 1:].clone()
    targets[0, :7] = -100
    config = Config(
        model=model.config,
        training=TrainingConfig(micro_batch_size=2),
        precision=PrecisionConfig(dtype=Dtype.float32),
    )
    batch = Batch(token_ids[:, :-1], targets)
    metrics = accumulate_gradients(model, LanguageModeling(), batch, config, step=0)
    return metrics, [p.grad for p in model.parameters() if p.grad is not None]


def work(rank: int, rows: int, folder: Path) -> None:
    """Run one process."""
    torch.set_num_threads(1)
    meeting = f"file://{folder / 'meeting'}"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    here = processes()
    assert (here.rank, here.world_size, here.is_main) == (rank, 2, rank == 0)
    assert here.agree(f"from {rank}") == "from 0"
    torch.save(gradients(rows), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("rows", [5, 1])  # unequal shares, and a process without rows
def test_two_processes_have_the_gradient_of_the_whole_batch(rows: int, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=work, args=(rank, rows, tmp_path)) for rank in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
        assert process.exitcode == 0
    metrics, expected = gradients(rows)
    for rank in range(2):
        found, parts = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found == pytest.approx(metrics, rel=1e-12)
        assert len(parts) == len(expected)
        for part, whole in zip(parts, expected, strict=True):
            torch.testing.assert_close(part, whole, rtol=1e-9, atol=1e-14)


def test_shares_of_processes() -> None:
    assert processes() == Processes(0, 1)
    assert Processes().share(7) == (0, 7)
    assert [Processes(rank, 3).share(7) for rank in range(3)] == [(0, 3), (3, 5), (5, 7)]
