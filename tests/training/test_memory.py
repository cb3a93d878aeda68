"""Predicted memory against what a training step holds, and the micro-batch size that follows from it."""

import dataclasses
import platform
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.training_step import RandomBatch
from tests.helpers import shrink, tiny_model
from wholegpt import runtime
from wholegpt.checkpoint import make_model
from wholegpt.errors import ConfigError
from wholegpt.model import Transformer, saved_activations
from wholegpt.model.base import NeuralModel
from wholegpt.runtime import compute_in, memory
from wholegpt.settings.choices import (
    ActivationCheckpointing,
    Architecture,
    Attention,
    AttentionKernel,
    Dtype,
    FeedForward,
    Positions,
    QueryKeyNorm,
)
from wholegpt.settings.presets import gpt2, modern
from wholegpt.settings.schema import Config, ModelConfig, TrainingConfig
from wholegpt.settings.serialization import from_mapping
from wholegpt.settings.validation import complete_model
from wholegpt.training.loop import train_step
from wholegpt.training.memory import HEADROOM, fitting_micro_batch, peak_tensor_bytes
from wholegpt.training.objectives import LanguageModeling
from wholegpt.training.optimizers import make_run_optimizer
from wholegpt.training.state import TrainingState

GB = 1e9
MEGABYTE = 2**20


def kept_bytes(config: ModelConfig, kernel: AttentionKernel, rows: int) -> int:
    """Return the bytes of distinct tensors that autograd keeps in a forward pass, without the weights."""
    model = make_model(config, kernel=kernel).train()
    assert isinstance(model, NeuralModel)
    shapes = {tuple(p.shape) for p in model.parameters()} | {tuple(p.shape[::-1]) for p in model.parameters()}
    experts = {p.numel() for p in model.parameters() if p.ndim == 2} if config.n_experts else set[int]()
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tuple(tensor.shape) not in shapes and tensor.numel() not in experts:
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
        tiny_model(**WIDE, feed_forward=FeedForward.relu),
        tiny_model(**WIDE, feed_forward=FeedForward.relu_squared),
        tiny_model(**WIDE, attention=Attention.average, positions=Positions.learned),
        tiny_model(**{**WIDE, "context_length": 256}, attention=Attention.linear, positions=Positions.none),
        tiny_model(**{**WIDE, "context_length": 256}, n_experts=4),
        tiny_model(**WIDE, positions=Positions.sinusoidal, distinct_layers=1),
        tiny_model(**WIDE, architecture=Architecture.encoder),
        tiny_model(**WIDE, architecture=Architecture.encoder_decoder, separator=1),
        tiny_model(**WIDE, architecture=Architecture.encoder_decoder, separator=1, dropout=0.1),
    ],
)
def test_predicted_activations_are_those_that_autograd_keeps(config: ModelConfig) -> None:
    rows = 3
    predicted = 2 * rows * config.context_length * saved_activations(config, AttentionKernel.blocked)
    assert predicted == pytest.approx(kept_bytes(config, AttentionKernel.blocked, rows), rel=0.05)


class LiveBytes(TorchDispatchMode):
    """Measures the peak bytes of distinct live tensors, as returned by PyTorch operations."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.users: Counter[int] = Counter()
        self.peak = 0

    def count(self, tensor: torch.Tensor) -> None:
        """Count a new live tensor."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        self.sizes[key] = storage.nbytes()
        self.users[key] += 1
        self.peak = max(self.peak, sum(self.sizes.values()))
        weakref.finalize(tensor, self.forget, key)

    def forget(self, key: int) -> None:
        """Subtract a freed tensor of a storage."""
        self.users[key] -= 1
        if not self.users[key]:
            del self.sizes[key], self.users[key]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(returned):
            if isinstance(tensor, torch.Tensor):
                self.count(tensor)
        return returned


def live_bytes(config: Config) -> int:
    """Return the peak bytes in the third training step."""
    torch.manual_seed(0)
    batches, state = RandomBatch(config.model, config.training.batch_size), TrainingState()
    with LiveBytes() as live:
        model = Transformer(config.model, config.precision.attention).train()
        for parameter in model.parameters():
            live.count(parameter)
        optimizer = make_run_optimizer(model, config)
        for _ in range(3):
            live.peak = 0
            train_step(model, optimizer, LanguageModeling(), batches, config, state)
            state.step += 1
    return live.peak


MEDIUM: dict[str, Any] = {
    "vocab_size": 1000,
    "context_length": 128,
    "n_layers": 4,
    "d_model": 128,
    "n_heads": 4,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "model,dtype,kind,rows",
    [
        (shrink(modern(), **MEDIUM), "bfloat16", "muon", 16),
        (shrink(modern(), **MEDIUM), "float32", "adamw", 16),
        (shrink(modern(), **{**MEDIUM, "vocab_size": 20_000}), "bfloat16", "muon", 16),
        (shrink(modern(), **{**MEDIUM, "d_model": 512}), "bfloat16", "muon", 1),
        (shrink(modern(), **{**MEDIUM, "d_model": 512}), "float32", "adamw", 1),
        (shrink(gpt2(), **{**MEDIUM, "dropout": 0.1}), "bfloat16", "adamw", 16),
    ],
)
def test_the_predicted_peak_is_that_of_a_step(model: ModelConfig, dtype: str, kind: str, rows: int) -> None:
    config = from_mapping(
        {
            "training": {"batch_size": rows, "micro_batch_size": rows},
            "optimizer": {"kind": kind, "learning_rate": 1e-3},
            "precision": {"dtype": dtype, "attention": "blocked"},
            "runtime": {"device": "cpu"},
        },
        Config(model=complete_model(model)),
    )
    assert peak_tensor_bytes(config, rows) == pytest.approx(live_bytes(config), rel=0.13)


def decided(
    model: ModelConfig, activation_checkpointing: ActivationCheckpointing = ActivationCheckpointing.none
) -> Config:
    config = Config(
        model=model, training=TrainingConfig(batch_size=16, activation_checkpointing=activation_checkpointing)
    )
    return from_mapping({"precision": {"dtype": "bfloat16", "attention": "blocked"}}, config)


BIG = dataclasses.replace(modern(), vocab_size=50_000)


def test_step_that_does_not_fit_is_split_into_micro_batches() -> None:
    config = decided(BIG)
    whole, single = (peak_tensor_bytes(config, rows) for rows in (16, 1))
    assert fitting_micro_batch(config, 2 * whole) == 16
    for free in (0.8 * whole, 0.5 * whole, 1.2 * single):
        rows = fitting_micro_batch(config, free)
        assert peak_tensor_bytes(config, rows) <= free < 2 * peak_tensor_bytes(config, min(2 * rows, 16))


def test_model_that_cannot_fit_is_rejected_with_advice() -> None:
    config = decided(BIG)
    recomputed = decided(BIG, activation_checkpointing=ActivationCheckpointing.blocks)
    free = 1.15 * peak_tensor_bytes(recomputed, 1)
    assert HEADROOM * free < peak_tensor_bytes(config, 1)
    with pytest.raises(
        ConfigError,
        match=r"needs about [\d.]+ GB .* this would fit: --training.activation-checkpointing blocks$",
    ):
        fitting_micro_batch(config, free)
    with pytest.raises(
        ConfigError, match=r"--training.activation-checkpointing blocks --model.n-layers \d+$"
    ):
        fitting_micro_batch(config, 0.6 * free)
    with pytest.raises(ConfigError, match="a far smaller model is needed"):
        fitting_micro_batch(config, 0.01 * GB)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told what to keep")
def test_memory_apart_releases_its_memory() -> None:
    runtime.keep_freed_memory()
    pieces = [torch.ones(MEGABYTE // 4 + i) for i in range(200)]
    wedges = [torch.ones(4) for _ in pieces]
    del pieces
    kept = memory._process_bytes("VmRSS")
    with runtime.memory_apart():
        freed = kept - memory._process_bytes("VmRSS")
        large = torch.ones(50 * MEGABYTE)
        most = memory._process_bytes("VmRSS")
        del large
    assert freed > 150 * MEGABYTE
    assert most < kept + 50 * MEGABYTE
    assert memory._process_bytes("VmRSS") < most - 150 * MEGABYTE
    assert len(wedges) == 200


@pytest.mark.parametrize("version", [2, 1])
def test_free_memory_of_a_container_includes_the_file_cache(tmp_path: Path, version: int) -> None:
    if version == 2:
        files = {
            "memory.max": "1000",
            "memory.current": "700",
            "memory.stat": "anon 300\ninactive_file 250\n",
        }
    else:
        files = {
            "memory/memory.limit_in_bytes": "1000",
            "memory/memory.usage_in_bytes": "700",
            "memory/memory.stat": "total_cache 400\ntotal_inactive_file 250\n",
        }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert memory._container_memory(tmp_path) == 1000 - 700 + 250
    assert memory._container_memory(tmp_path / "nowhere") == float("inf")
    if version == 2:
        (tmp_path / "memory.max").write_text("max\n")
        assert memory._container_memory(tmp_path) == float("inf")
