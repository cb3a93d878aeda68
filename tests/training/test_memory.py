"""Predicted memory against what a step holds; and the micro-batch that follows from it."""

import dataclasses
import platform

import pytest
import torch

from tests.helpers import shrink, tiny_model
from wholegpt import runtime
from wholegpt.config import (
    AttentionKernel,
    Config,
    Dtype,
    FeedForward,
    ModelConfig,
    QueryKeyNorm,
    Recompute,
    TrainingConfig,
    from_mapping,
)
from wholegpt.errors import ConfigError
from wholegpt.model import Transformer, saved_activations
from wholegpt.presets import gpt2, modern
from wholegpt.runtime import compute_in
from wholegpt.training.memory import HEADROOM, fitting_micro_batch, peak_tensor_bytes

GB = 1e9
MEGABYTE = 2**20


def kept_bytes(config: ModelConfig, kernel: AttentionKernel, rows: int) -> int:
    """Bytes of different tensors that autograd keeps in a forward pass, beside the weights and their copies."""
    model = Transformer(config, kernel).train()
    shapes = {tuple(p.shape) for p in model.parameters()} | {tuple(p.shape[::-1]) for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tuple(tensor.shape) not in shapes:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.randint(config.vocab_size, (rows, config.context_length))
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, compute_in(Dtype.bfloat16, torch.device("cpu")):
        hidden = model.hidden_states(ids)
    return sum(t.untyped_storage().nbytes() for t in kept.values()) + hidden.untyped_storage().nbytes()


WIDE = {"d_model": 128, "n_heads": 4, "context_length": 64, "n_layers": 3}


@pytest.mark.parametrize(
    "config",
    [
        tiny_model(**WIDE),
        tiny_model(**WIDE, dropout=0.1),
        tiny_model(**WIDE, query_key_norm=QueryKeyNorm.none, feed_forward=FeedForward.gelu),
        shrink(gpt2(), **WIDE),
        shrink(gpt2(), **{**WIDE, "dropout": 0.2}),
    ],
)
def test_predicted_activations_are_those_that_autograd_keeps(config: ModelConfig) -> None:
    rows = 3
    predicted = 2 * rows * config.context_length * saved_activations(config, AttentionKernel.blocked)
    assert predicted == pytest.approx(kept_bytes(config, AttentionKernel.blocked, rows), rel=0.05)


def decided(model: ModelConfig, recompute: Recompute = Recompute.nothing) -> Config:
    config = Config(model=model, training=TrainingConfig(batch_size=16, recompute=recompute))
    return from_mapping({"precision": {"dtype": "bfloat16", "attention": "blocked"}}, config)


BIG = dataclasses.replace(modern(), vocab_size=50_000)


def test_a_step_that_does_not_fit_is_split() -> None:
    config = decided(BIG)
    whole, single = (peak_tensor_bytes(config, rows) for rows in (16, 1))
    assert fitting_micro_batch(config, 2 * whole) == 16
    for free in (0.8 * whole, 0.5 * whole, 1.2 * single):
        rows = fitting_micro_batch(config, free)
        assert peak_tensor_bytes(config, rows) <= free < 2 * peak_tensor_bytes(config, min(2 * rows, 16))


def test_a_model_that_cannot_fit_is_refused_with_what_would() -> None:
    config = decided(BIG)
    recomputed = decided(BIG, recompute=Recompute.blocks)
    free = 1.15 * peak_tensor_bytes(recomputed, 1)
    assert HEADROOM * free < peak_tensor_bytes(config, 1)
    with pytest.raises(
        ConfigError, match=r"needs about [\d.]+ GB .* this would fit: --training.recompute blocks$"
    ):
        fitting_micro_batch(config, free)
    with pytest.raises(ConfigError, match=r"--training.recompute blocks --model.n-layers \d+$"):
        fitting_micro_batch(config, 0.6 * free)
    with pytest.raises(ConfigError, match="a far smaller model is needed"):
        fitting_micro_batch(config, 0.01 * GB)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told what to keep")
def test_work_apart_neither_adds_to_the_peak_nor_leaves_memory_behind() -> None:
    runtime.keep_freed_memory()
    pieces = [torch.ones(MEGABYTE // 4 + i) for i in range(200)]
    wedges = [torch.ones(4) for _ in pieces]
    del pieces
    kept = runtime._process_bytes("VmRSS")
    with runtime.memory_apart():
        freed = kept - runtime._process_bytes("VmRSS")
        large = torch.ones(50 * MEGABYTE)
        most = runtime._process_bytes("VmRSS")
        del large
    assert freed > 150 * MEGABYTE
    assert most < kept + 50 * MEGABYTE
    assert runtime._process_bytes("VmRSS") < most - 150 * MEGABYTE
    assert len(wedges) == 200
