"""Tokens per second of one training step: ours beside nanoGPT's and transformers', alternating, in one process."""

import argparse
import dataclasses
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from wholegpt import runtime
from wholegpt.config import Bias, Config, Dtype, FeedForward, ModelConfig, TrainingConfig
from wholegpt.data import Batch
from wholegpt.model import Transformer, flops_per_token, parameter_count
from wholegpt.presets import gpt2
from wholegpt.training.loop import train_step
from wholegpt.training.objectives import LanguageModeling
from wholegpt.training.optimizers import make_optimizer
from wholegpt.training.state import TrainingState

CHARACTERS = dataclasses.replace(
    gpt2(),
    vocab_size=65,
    context_length=256,
    n_layers=6,
    d_model=384,
    n_heads=6,
    feed_forward=FeedForward.gelu,
    bias=Bias.none,
    dropout=0.0,
)
"""nanoGPT's model of characters: 10.7 M parameters."""
GPT2 = dataclasses.replace(gpt2(), dropout=0.0)


@dataclass
class Side:
    """One way of training, and what was measured of it."""

    name: str
    step: Callable[[], object]
    tokens: int
    seconds: list[float] = field(default_factory=list)
    products: list[float] = field(default_factory=list)
    """FLOP/s of a 4096³ bfloat16 product measured right after each of its steps."""


class RandomBatch:
    """Any step's batch: the same random tokens, so that loading data is no part of the measurement."""

    def __init__(self, model: ModelConfig, rows: int) -> None:
        ids = torch.randint(model.vocab_size, (rows, model.context_length + 1))
        self.only = Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())

    def batch(self, step: int) -> Batch:
        return self.only


def ours(model_config: ModelConfig, rows: int, dtype: Dtype = Dtype.automatic, micro_rows: int = 0) -> Side:
    """The loop's own step."""
    config = Config(model=model_config, training=TrainingConfig(batch_size=rows, micro_batch_size=micro_rows))
    precision = dataclasses.replace(config.precision, dtype=dtype)
    config = runtime.decide(dataclasses.replace(config, precision=precision))
    model = Transformer(config.model, config.precision.attention)
    optimizer = make_optimizer(model, config.optimizer)
    batches = RandomBatch(model_config, rows)
    state = TrainingState()
    return Side(
        f"wholegpt, {config.precision.dtype}, batch {rows}",
        lambda: train_step(model.train(), optimizer, LanguageModeling(), batches, config, state),
        rows * model_config.context_length,
    )


def peer_step(
    model: Any, optimizer: torch.optim.Optimizer, loss: Callable[[], torch.Tensor], bfloat16: bool
) -> Callable[[], None]:
    """Forward, backward, clipping at 1 and AdamW, as both peers' own trainers do."""

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16) if bfloat16 else nullcontext():
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def nanogpt(checkout: Path, config: ModelConfig, rows: int, bfloat16: bool, compiled: bool = False) -> Side:
    """nanoGPT's model and optimiser."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", checkout / "model.py")
    assert spec and spec.loader
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    model = module.GPT(
        module.GPTConfig(
            block_size=config.context_length,
            vocab_size=config.vocab_size,
            n_layer=config.n_layers,
            n_head=config.n_heads,
            n_embd=config.d_model,
            dropout=config.dropout,
            bias=False,
        )
    )
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")
    called = torch.compile(model) if compiled else model
    batch = RandomBatch(config, rows).only
    how = ("bfloat16 autocast" if bfloat16 else "float32") + (", compiled" if compiled else "")
    step = peer_step(model, optimizer, lambda: called(batch.token_ids, batch.targets)[1], bfloat16)
    return Side(f"nanoGPT, {how}, batch {rows}", step, rows * config.context_length)


def transformers(config: ModelConfig, rows: int, bfloat16: bool) -> Side:
    """GPT-2 of transformers with PyTorch's fused AdamW."""
    from transformers import GPT2Config, GPT2LMHeadModel  # type: ignore[import-not-found]

    shape = GPT2Config(
        vocab_size=config.vocab_size,
        n_positions=config.context_length,
        n_embd=config.d_model,
        n_layer=config.n_layers,
        n_head=config.n_heads,
        attn_pdrop=config.dropout,
        embd_pdrop=config.dropout,
        resid_pdrop=config.dropout,
        use_cache=False,
    )
    model = GPT2LMHeadModel(shape).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    batch = RandomBatch(config, rows).only
    how = "bfloat16 autocast" if bfloat16 else "float32"
    loss = peer_step(model, optimizer, lambda: model(batch.token_ids, labels=batch.token_ids).loss, bfloat16)
    return Side(f"transformers, {how}, batch {rows}", loss, rows * config.context_length)


def product_rate() -> float:
    """FLOP/s of the best of three 4096³ products in bfloat16."""
    left, right = torch.randn(2, 4096, 4096).bfloat16()
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        torch.mm(left, right)
        best = min(best, time.perf_counter() - started)
    return 2 * 4096**3 / best


def alternate(sides: list[Side], rounds: int, least_seconds: float = 2.0) -> None:
    """Measure the sides in turn, ``rounds`` times, each for at least ``least_seconds``, after two steps each."""
    for side in sides:
        side.step()
        side.step()
    for number in range(rounds):
        for side in sides:
            started, steps = time.perf_counter(), 0
            while time.perf_counter() - started < least_seconds or steps < 2:
                side.step()
                steps += 1
            side.seconds.append((time.perf_counter() - started) / steps)
            side.products.append(product_rate())
        print(f"round {number + 1} of {rounds} is done", file=sys.stderr)


def show(sides: list[Side], config: ModelConfig) -> None:
    """The table: each side's speed, and its ratio to each of the others in the same round."""
    per_token = (
        6 * parameter_count(config).total + 12 * config.n_layers * config.d_model * config.context_length
    )
    assert abs(per_token / (3 * flops_per_token(config)) - 1) < 0.05
    machine = runtime.machine()
    print(f"\n{machine['processor']}, {torch.get_num_threads()} threads, torch {torch.__version__};", end=" ")
    print(f"medians (min to max) of {len(sides[0].seconds)} alternating rounds\n")
    print(
        "| side | seconds a step | tokens/s | share of a 4096³ bfloat16 product's FLOP/s | times the first side |"
    )
    print("| --- | ---: | ---: | ---: | ---: |")
    for side in sides:
        share = [side.tokens * per_token / s / p for s, p in zip(side.seconds, side.products, strict=True)]
        ratios = [
            (side.tokens / s) / (sides[0].tokens / t)
            for s, t in zip(side.seconds, sides[0].seconds, strict=True)
        ]
        cells = [
            spread(side.seconds, "{:.2f}"),
            spread([side.tokens / s for s in side.seconds], "{:,.0f}"),
            spread([100 * x for x in share], "{:.0f}%"),
            spread(ratios, "{:.2f}"),
        ]
        print(f"| {side.name} | " + " | ".join(cells) + " |")
    rates = [p / 1e9 for side in sides for p in side.products]
    print(f"\nThe product ran at {spread(rates, '{:.0f}')} GFLOP/s.")


def spread(values: list[float], format_: str) -> str:
    """Median (min to max)."""
    median, least, most = statistics.median(values), min(values), max(values)
    return f"{format_.format(median)} ({format_.format(least)} to {format_.format(most)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=("characters", "gpt2"), default="characters")
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--transformers", action="store_true", help="beside the installed transformers")
    parser.add_argument("--compiled", action="store_true", help="nanoGPT compiled, too")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--batches", type=int, nargs="+", help="our batch sizes")
    parser.add_argument("--float32", action="store_true", help="ours in float32, too")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    runtime.keep_freed_memory()
    torch.manual_seed(0)
    base = CHARACTERS if arguments.model == "characters" else GPT2
    config = dataclasses.replace(base, dropout=arguments.dropout)
    peers_batch = 12 if arguments.model == "characters" else 2
    batches = arguments.batches or ([32] if arguments.model == "characters" else [2])
    sides: list[Side] = []
    if arguments.nanogpt:
        sides += [nanogpt(arguments.nanogpt, config, peers_batch, bfloat16) for bfloat16 in (False, True)]
        if arguments.compiled:
            sides.append(nanogpt(arguments.nanogpt, config, peers_batch, bfloat16=True, compiled=True))
    if arguments.transformers:
        sides += [transformers(config, peers_batch, bfloat16) for bfloat16 in (False, True)]
    sides += [ours(config, rows) for rows in batches]
    if arguments.float32:
        sides += [ours(config, rows, Dtype.float32) for rows in batches]
    alternate(sides, arguments.rounds)
    show(sides, config)


if __name__ == "__main__":
    main()
