"""Compare speed and memory of the training step with nanoGPT and transformers, in turn."""

import argparse
import dataclasses
import importlib.util
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.tables import conditions, publish, spread
from wholegpt import runtime
from wholegpt.data import Batch
from wholegpt.model import Transformer, parameter_count
from wholegpt.settings.choices import Bias, Dtype, Execution, FeedForward, OptimizerKind
from wholegpt.settings.presets import gpt2
from wholegpt.settings.schema import Config, ModelConfig, OptimizerConfig, TrainingConfig
from wholegpt.training.loop import train_step
from wholegpt.training.objectives import LanguageModeling, with_router_losses
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
"""The character-level model of nanoGPT: 10.75 M parameters."""
GPT2 = dataclasses.replace(gpt2(), dropout=0.0)
SECONDS_PER_ROUND = 4.0
"""Minimum time of a measurement."""


@dataclass
class Side:
    """An implementation of the training step, and its measurements."""

    name: str
    make_step: Callable[[], Callable[[], object]]
    """Build model and optimizer, and return a function that takes one optimizer step."""
    tokens: int
    """Tokens per step."""
    seconds: list[float] = field(default_factory=list)
    products: list[float] = field(default_factory=list)
    """FLOP/s of a 4096³ bfloat16 product, measured in the same process after each measurement."""
    peak: float = 0.0
    """Largest resident set of the process before the first product, in bytes."""


class RandomBatch:
    """A loader that returns the same random tokens for every step, so that loading is not measured."""

    def __init__(self, model: ModelConfig, rows: int) -> None:
        ids = torch.randint(model.vocab_size, (rows, model.context_length + 1))
        self.only = Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())

    def batch(self, step: int) -> Batch:
        return self.only


def ours(
    model_config: ModelConfig,
    rows: int,
    dtype: Dtype = Dtype.automatic,
    execution: Execution = Execution.eager,
) -> Side:
    """Return the training step of wholegpt."""
    optimizer = OptimizerConfig(kind=OptimizerKind.adamw, learning_rate=1e-3)
    config = Config(model=model_config, training=TrainingConfig(batch_size=rows), optimizer=optimizer)
    precision = dataclasses.replace(config.precision, dtype=dtype, execution=execution)
    config = runtime.decide(dataclasses.replace(config, precision=precision))

    def make_step() -> Callable[[], object]:
        runtime.keep_freed_memory()  # as every run does
        model = Transformer(config.model, config.precision.attention).train()
        if execution is Execution.compiled:
            for block in model.blocks:  # as the loop does before its first step
                block.compile()
        adamw = make_optimizer(model, config.optimizer)
        batches, state = RandomBatch(model_config, rows), TrainingState()
        return lambda: train_step(
            model, adamw, with_router_losses(LanguageModeling(), config), batches, config, state
        )

    compiled = ", compiled" if execution is Execution.compiled else ""
    return Side(
        f"wholegpt, {config.precision.dtype}{compiled}, batch {rows}",
        make_step,
        rows * config.model.context_length,
    )


def peer_step(
    model: Any, optimizer: torch.optim.Optimizer, loss: Callable[[], torch.Tensor], bfloat16: bool
) -> Callable[[], None]:
    """Return a step with forward, backward, clipping at 1 and AdamW, as in the trainers of both peers."""

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16) if bfloat16 else nullcontext():
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def nanogpt_module(checkout: Path) -> Any:
    """Import ``model.py`` of nanoGPT."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", checkout / "model.py")
    assert spec and spec.loader
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def nanogpt(checkout: Path, config: ModelConfig, rows: int, bfloat16: bool, compiled: bool = False) -> Side:
    """Return the training step of nanoGPT."""

    def make_step() -> Callable[[], object]:
        module = nanogpt_module(checkout)
        shape = module.GPTConfig(
            block_size=config.context_length,
            vocab_size=config.vocab_size,
            n_layer=config.n_layers,
            n_head=config.n_heads,
            n_embd=config.d_model,
            dropout=config.dropout,
            bias=False,
        )
        with redirect_stdout(sys.stderr):
            model = module.GPT(shape)
            optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")
        called = torch.compile(model) if compiled else model
        batch = RandomBatch(config, rows).only
        return peer_step(model, optimizer, lambda: called(batch.token_ids, batch.targets)[1], bfloat16)

    how = ("bfloat16 autocast" if bfloat16 else "float32") + (", compiled" if compiled else "")
    return Side(f"nanoGPT, {how}, batch {rows}", make_step, rows * config.context_length)


def transformers(config: ModelConfig, rows: int, bfloat16: bool) -> Side:
    """Return the training step of GPT-2 in transformers with PyTorch's fused AdamW."""

    def make_step() -> Callable[[], object]:
        from transformers import GPT2Config, GPT2LMHeadModel

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
        ids = RandomBatch(config, rows).only.token_ids
        return peer_step(model, optimizer, lambda: model(ids, labels=ids).loss, bfloat16)

    how = "bfloat16 autocast" if bfloat16 else "float32"
    return Side(f"transformers, {how}, batch {rows}", make_step, rows * config.context_length)


def product_rate() -> float:
    """Return the FLOP/s of the best of three 4096³ products in bfloat16."""
    left, right = torch.randn(2, 4096, 4096).bfloat16()
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        torch.mm(left, right)
        best = min(best, time.perf_counter() - started)
    return 2 * 4096**3 / best


def seconds_per_step(step: Callable[[], object]) -> float:
    """Return the mean time of a step over a few seconds."""
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < SECONDS_PER_ROUND:
        step()
        done += 1
    return (time.perf_counter() - started) / done


def serve(side: Side, commands: Connection) -> None:
    """Run in a separate process: build the side, take two steps, then measure on each command."""
    step = side.make_step()
    step()
    step()
    commands.send("ready")
    while commands.recv():
        seconds = seconds_per_step(step)
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        commands.send((seconds, peak, product_rate()))


def alternate(sides: list[Side], rounds: int) -> None:
    """Measure the sides in turn, ``rounds`` times, each in a process of its own.

    The calling process must not have used several threads before, because a fork does not survive that.
    """
    context = multiprocessing.get_context("fork")
    workers: list[tuple[Connection, Any]] = []
    for side in sides:
        ours_end, theirs = context.Pipe()
        worker = context.Process(target=serve, args=(side, theirs), daemon=True)
        worker.start()
        ours_end.recv()
        workers.append((ours_end, worker))
    for number in range(rounds):
        for side, (connection, _) in zip(sides, workers, strict=True):
            connection.send(True)
            seconds, peak, product = connection.recv()
            side.peak = side.peak or peak
            side.seconds.append(seconds)
            side.products.append(product)
        print(f"round {number + 1} of {rounds} is done", file=sys.stderr)
    for connection, worker in workers:
        connection.send(False)
        worker.join()


def table(sides: list[Side], config: ModelConfig) -> str:
    """Return the table of speeds, with ratios to the first side in the same round."""
    parameters = parameter_count(config).total
    per_token = 6 * parameters + 12 * config.n_layers * config.d_model * config.context_length
    lines = [
        "| Side | Seconds per step | Tokens/s | Share of the product rate | Speed relative to the first row | Peak "
        "memory |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for side in sides:
        shares = [side.tokens * per_token / s / p for s, p in zip(side.seconds, side.products, strict=True)]
        first = [sides[0].tokens / seconds for seconds in sides[0].seconds]
        cells = [
            side.name,
            spread(side.seconds, "{:.2f}"),
            spread([side.tokens / s for s in side.seconds], "{:,.0f}"),
            spread([100 * share for share in shares], "{:.0f}%"),
            spread([side.tokens / s / f for s, f in zip(side.seconds, first, strict=True)], "{:.2f}"),
            f"{side.peak / 1e9:.1f} GB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    rates = [product / 1e9 for side in sides for product in side.products]
    counted = f"6·{parameters / 1e6:.1f} M + 12·L·D·τ = {per_token / 1e6:.0f} MFLOP per token"
    lines += [
        "",
        f"The 4096³ product ran at {spread(rates, '{:.0f}')} GFLOP/s. FLOPs are counted as {counted}.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=("characters", "gpt2"), default="characters")
    parser.add_argument("--nanogpt", type=Path, help="checkout of nanoGPT to compare with")
    parser.add_argument("--transformers", action="store_true", help="compare with the installed transformers")
    parser.add_argument("--compiled", action="store_true", help="also compiled")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--batches", type=int, nargs="+", help="batch sizes of wholegpt")
    parser.add_argument("--float32", action="store_true", help="wholegpt also in float32")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    characters = arguments.model == "characters"
    config = dataclasses.replace(CHARACTERS if characters else GPT2, dropout=arguments.dropout)
    theirs = 12 if characters else 2
    batches = arguments.batches or ([12, 32, 64] if characters else [2, 8])
    sides: list[Side] = []
    if arguments.nanogpt:
        sides += [nanogpt(arguments.nanogpt, config, theirs, bfloat16) for bfloat16 in (False, True)]
        if arguments.compiled:
            sides.append(nanogpt(arguments.nanogpt, config, theirs, bfloat16=True, compiled=True))
    if arguments.transformers:
        sides += [transformers(config, theirs, bfloat16) for bfloat16 in (False, True)]
    sides += [ours(config, rows) for rows in batches]
    if arguments.compiled:
        sides += [ours(config, rows, execution=Execution.compiled) for rows in batches]
    if arguments.float32:
        sides += [ours(config, rows, Dtype.float32) for rows in batches]
    alternate(sides, arguments.rounds)
    name = f"Training step, {arguments.model}" + (
        f", dropout {arguments.dropout:g}" if arguments.dropout else ""
    )
    publish(name, f"{conditions(arguments.rounds)}\n\n{table(sides, config)}")


if __name__ == "__main__":
    main()
