"""Tests that need a GPU."""

from pathlib import Path

import pytest
import torch

from tests.helpers import text_of, tiny_config, tiny_model
from tests.training.test_runs import weights
from wholegpt.console import Console
from wholegpt.model import Transformer
from wholegpt.runs import api
from wholegpt.settings.choices import AttentionKernel

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


def test_resumed_run_equals_an_uninterrupted_run_on_a_gpu(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(text_of(6000))
    config = tiny_config(
        tmp_path / "text.txt",
        model={"dropout": 0.1},
        runtime={"device": "cuda", "determinism": "strict"},
    )
    quiet = Console(quiet=True)
    whole = api.train(config=config, out=tmp_path / "whole", console=quiet)
    api.train(config=config, out=tmp_path / "cut", max_seconds=1e-9, console=quiet)
    api.resume(tmp_path / "cut", console=quiet)
    assert weights(tmp_path / "cut", 12) == weights(whole.path, 12)


@pytest.mark.parametrize("kernel", [AttentionKernel.plain, AttentionKernel.fused])
def test_logits_on_a_gpu_equal_those_on_the_cpu(kernel: AttentionKernel) -> None:
    torch.manual_seed(0)
    model = Transformer(tiny_model(), kernel).double().eval()
    ids = torch.randint(37, (2, 12))
    with torch.no_grad():
        on_cpu, on_gpu = model(ids), model.cuda()(ids.cuda()).cpu()
    torch.testing.assert_close(on_gpu, on_cpu, rtol=0, atol=1e-10)
