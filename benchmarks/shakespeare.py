"""Measure validation loss against training time on tiny Shakespeare, also of nanoGPT if a checkout is given."""

import argparse
import json
import math
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import wholegpt as wg
from benchmarks.tables import conditions, publish, spread
from benchmarks.training_step import CHARACTERS, nanogpt_module, seconds_per_step
from benchmarks.training_step import nanogpt as nanogpt_step
from wholegpt.console import Console
from wholegpt.data.reading.corpora import tinyshakespeare
from wholegpt.runs.api import train
from wholegpt.settings.presets import configure

MARKS = [*range(30, 181, 30), *range(240, 1201, 60)]
GPU_STEPS = 2000
"""Step at which the validation loss of nanoGPT's documented GPU recipe usually reaches its minimum."""
Curve = list[tuple[float, float]]
"""(training seconds, validation nats per character), ascending."""


def ours(recipe: str, seed: int) -> Curve:
    """Train the recipe, with sixteen evaluations on the whole validation text."""
    base = wg.recipe(recipe)
    changes = {
        "evaluation": {"every": max(1, base.training.steps // 16)},
        "logging": {"sample_tokens": 0},
        "runtime": {"seed": seed},
    }
    config = configure(changes, base)
    with tempfile.TemporaryDirectory() as folder:
        run = train(config=config, out=Path(folder) / "run", console=Console())
        lines = (run.path / "metrics.jsonl").read_text().splitlines()
    records = [r for r in map(json.loads, lines) if r["kind"] == "validation"]
    return [(r["train_seconds"], r["nats_per_token"]) for r in records]


def nanogpt(checkout: Path, seed: int) -> Curve:
    """Train nanoGPT's model with its optimizer and the CPU settings of its README, evaluated every 5 s.

    4 layers, 4 heads, width 128, context 64, batch 12, 2,000 steps, no dropout, float32, cosine from 1e-3 to 1e-4 after
    100 steps of warm-up, beta2 0.99, weight decay 0.1, gradient clipping at 1.
    """
    module = nanogpt_module(checkout)
    text = next(tinyshakespeare().pieces()).text
    index = {character: i for i, character in enumerate(sorted(set(text)))}
    ids = np.array([index[character] for character in text], dtype=np.int64)
    training, validation = ids[: int(0.9 * len(ids))], ids[int(0.9 * len(ids)) :]
    torch.manual_seed(seed)
    context, batch, steps, warmup, peak, least = 64, 12, 2000, 100, 1e-3, 1e-4
    model = module.GPT(
        module.GPTConfig(
            block_size=context, vocab_size=65, n_layer=4, n_head=4, n_embd=128, dropout=0.0, bias=False
        )
    )
    optimizer = model.configure_optimizers(0.1, peak, (0.9, 0.99), "cpu")

    @torch.no_grad()
    def evaluate() -> float:
        total, count = 0.0, 0
        for start in range(0, len(validation) - 1, context * 64):
            chunk = torch.from_numpy(validation[start : start + context * 64 + 1])
            whole = (len(chunk) - 1) // context * context
            pieces = [(chunk[:whole].view(-1, context), chunk[1 : whole + 1].view(-1, context))]
            if whole < len(chunk) - 1:
                pieces.append((chunk[whole:-1][None], chunk[whole + 1 :][None]))
            for inputs, targets in pieces:
                if targets.numel():
                    _, loss = model(inputs, targets)
                    total, count = total + loss.item() * targets.numel(), count + targets.numel()
        assert count == len(validation) - 1
        return total / count

    curve: Curve = []
    spent, next_mark = 0.0, 5.0
    for step in range(steps):
        started = time.perf_counter()
        rate = peak * (step + 1) / (warmup + 1)
        if step >= warmup:
            share = (step - warmup) / (steps - warmup)
            rate = least + 0.5 * (1 + math.cos(math.pi * share)) * (peak - least)
        for group in optimizer.param_groups:
            group["lr"] = rate
        starts = torch.randint(len(training) - context, (batch,)).tolist()
        windows = torch.from_numpy(np.stack([training[s : s + context + 1] for s in starts]))
        _, loss = model(windows[:, :-1].contiguous(), windows[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        spent += time.perf_counter() - started
        if spent >= next_mark or step == steps - 1:
            curve.append((spent, evaluate()))
            next_mark = spent + 5.0
    return curve


def at(curve: Curve, seconds: float) -> float:
    """Return the last value measured up to ``seconds``; NaN before the first."""
    return next((loss for spent, loss in reversed(curve) if spent <= seconds), math.nan)


def extrapolated_nanogpt(checkout: Path) -> str:
    """Return a line with the extrapolated time of nanoGPT's GPU recipe on this machine."""
    side = nanogpt_step(checkout, CHARACTERS, 12, bfloat16=True)
    step = side.make_step()
    speed = side.tokens / statistics.median(seconds_per_step(step) for _ in range(3))
    tokens = GPU_STEPS * 64 * 256
    return (
        "- nanoGPT's recipe for a GPU (10.7 M parameters, batch 64×256; published best 1.4697) usually reaches its "
        f"minimum near step {GPU_STEPS:,}, after {tokens / 1e6:.0f} M tokens. At {speed:,.0f} tokens/s in bfloat16 "
        f"here (batch 12) this would take {tokens / speed:,.0f} s. This is an extrapolation, not a run."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nanogpt", type=Path, help="checkout of nanoGPT to compare with")
    parser.add_argument("--recipe", default="shakespeare-3min")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    curves: dict[str, list[Curve]] = {arguments.recipe: []}
    for seed in range(1, arguments.rounds + 1):
        if arguments.nanogpt:
            curves.setdefault("nanoGPT's CPU recipe", []).append(nanogpt(arguments.nanogpt, seed))
        curves[arguments.recipe].append(ours(arguments.recipe, seed))
    sides = sorted(curves)
    last = max(curve[-1][0] for side in sides for curve in curves[side])
    marks = [mark for mark in MARKS if mark <= last + 30]
    lines = [
        conditions(arguments.rounds)
        + f" The recipe is `{arguments.recipe}`. Values are nats per character on held-out text: the last one "
        "measured up to that time.",
        "",
        "| Training seconds | " + " | ".join(sides) + " |",
        "| ---: |" + " ---: |" * len(sides),
    ]
    for mark in marks:
        cells = [spread([at(curve, mark) for curve in curves[side]], "{:.4f}") for side in sides]
        lines.append(f"| {mark} | " + " | ".join(cells) + " |")
    lines.append("")
    for side in sides:
        ends = ", ".join(f"{curve[-1][1]:.4f} after {curve[-1][0]:.1f} s" for curve in curves[side])
        best = min(loss for curve in curves[side] for _, loss in curve)
        lines.append(f"- Last value of {side}, by seed: {ends}; best of all evaluations {best:.4f}.")
    if arguments.nanogpt:
        lines.append(extrapolated_nanogpt(arguments.nanogpt))
    publish(f"Tiny Shakespeare, {arguments.recipe}", "\n".join(lines))


if __name__ == "__main__":
    main()
